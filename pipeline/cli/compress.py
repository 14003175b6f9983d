"""``compress-onnx compress``: one ONNX file in, a smaller one out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from compress_onnx.graph_passes.allocation import ALLOCATORS
from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.planning.decide import require_gain
from compress_onnx.graph_passes.planning.plan import CompressionPlan, read_plan
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.planning.strategy import concrete
from compress_onnx.pipeline.cli import options, outputs
from compress_onnx.pipeline.cli.console import (
    ProgressBars,
    errors,
    out,
    print_plan,
    print_recovery,
    print_search,
)
from compress_onnx.pipeline.compress.holdout import hold_out, metric_for
from compress_onnx.pipeline.compress.meter import Meter
from compress_onnx.pipeline.compress.search import smallest_within
from compress_onnx.pipeline.compress.siblings import rejoin, share_siblings
from compress_onnx.pipeline.compress.study import Researcher, Study, plan_study
from compress_onnx.pipeline.compress.subject import (
    Subject,
    evaluate_plan,
    open_subject,
    write_compressed,
)
from compress_onnx.pipeline.evidence.calibrate import Calibration
from compress_onnx.pipeline.files.atomic import atomic_file
from compress_onnx.pipeline.files.cache import ArrayCache
from compress_onnx.pipeline.recipe import RecoverySpec
from compress_onnx.pipeline.recipes.experiment import of_file
from compress_onnx.pipeline.recover.recover import check_trainable, recover_file, recovery_step
from compress_onnx.pipeline.results import RecoveryReport, SearchReport
from compress_onnx.pipeline.runtime.samples import Samples

_NO_DATA = (
    "note: no --calibration, so errors are those of the weights alone and nothing is known about "
    "the outputs; a few hundred real samples make the same size far more accurate"
)


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("compress")(compress)


def compress(
    model: options.Model,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The .onnx file to write.")
    ] = None,
    method: options.Method = "auto",
    params: options.Params = None,
    bytes_: options.Bytes = None,
    flops: options.Flops = None,
    latency: options.Latency = None,
    rank: options.Rank = None,
    max_drop: options.MaxDrop = None,
    calibration: options.CalibrationFile = None,
    validation: Annotated[
        Path | None,
        typer.Option(help=".npz that --max-drop is measured on, with `labels` for accuracy."),
    ] = None,
    mask: options.Mask = None,
    include: Annotated[
        list[str] | None, typer.Option(help="Compress only sites that match (glob).")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Leave sites that match as they are (glob).")
    ] = None,
    group: Annotated[str, typer.Option(help="all, attention, mlp or other.")] = "all",
    allocation: Annotated[
        str, typer.Option(help=f"How ranks are shared out: auto, {', '.join(ALLOCATORS)}.")
    ] = "auto",
    sequential: Annotated[
        bool | None,
        typer.Option(
            "--sequential/--one-shot",
            help="Let each site repair the errors of the earlier ones [default: if auto].",
        ),
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="What about the outputs matters: positions, or pooled.")
    ] = None,
    store: options.Store = None,
    siblings: Annotated[
        str, typer.Option(help="Query and key, say, share a factor: auto (where better), or never.")
    ] = "never",
    rank_multiple: Annotated[int, typer.Option(min=1, help="Ranks are multiples of this.")] = 8,
    allow_larger: Annotated[
        bool, typer.Option("--allow-larger", help="Also rewrite where factors are not smaller.")
    ] = False,
    plan_path: Annotated[
        Path | None, typer.Option("--plan", help="Apply this plan instead of making one.")
    ] = None,
    save_plan: Annotated[
        Path | None, typer.Option("--save-plan", help="Write the plan as JSON.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan with its errors; write no model.")
    ] = False,
    keep_metadata: Annotated[
        bool, typer.Option("--keep-metadata", help="Keep what the exporter wrote about sources.")
    ] = False,
    external_data: Annotated[
        bool | None,
        typer.Option(
            "--external-data/--inline", help="Weights in a file of their own [default: by size]."
        ),
    ] = None,
    recover_for: options.Recover = None,
    batch_size: options.BatchSize = 32,
    force: options.Force = False,
    no_cache: options.NoCache = False,
) -> None:
    """Replace the linear layers of MODEL by low-rank factors.

    `--params`, `--bytes`, `--flops` or `--latency` say how much of the original the selected layers
    may take; without any, and without `--rank`, half of the parameters. With `--calibration`, the
    method `auto` weighs every site by what it does to the outputs, shares the ranks out by that,
    and lets later sites repair earlier ones; without, it is plain SVD, which loses far more
    accuracy at the same size. `--dry-run` shows the plan first:

    `compress-onnx compress model.onnx --method svd --params 0.5 --dry-run`

    With `--max-drop 0.02` the share is found by measuring: on `--validation`, or on every fifth
    calibration sample, which calibration then does not see. The drop is one of accuracy where that
    data has `labels`, one of cosine with `--objective pooled`, else the relative L2 of the outputs.

    With `--recover 10min` the factors are then trained to reproduce the outputs of MODEL on the
    calibration data; a run that is killed goes on where it was when it is repeated.
    """
    recovery = _recovery(recover_for)
    _check_consistent(output, dry_run, calibration, recovery, store)
    budgets = options.budgets(params, bytes_, flops, latency)
    _check_searchable(max_drop, calibration, validation, budgets, rank, plan_path)
    request = options.validated(
        CompressionSpec,
        {
            "method": options.method_spec(method),
            **budgets,
            "rank": rank,
            "allocation": allocation,
            "sequential": sequential,
            "objective": objective,
            "store": store or "same",
            "siblings": siblings,
            "rank_multiple": rank_multiple,
            "allow_larger": allow_larger,
            "select": {"include": include or ["*"], "exclude": exclude or [], "group": group},
        },
    )
    written = (outputs.model_file(output), outputs.plan_file(save_plan))
    outputs.check_outputs(written, (model, calibration, validation, plan_path), force=force)
    if recovery is not None:
        check_trainable(model)
    subject = open_subject(model)
    samples, held_out = (
        None if path is None else options.labelled_samples_for(model, path, mask)
        for path in (calibration, validation)
    )
    cache = options.cache_unless(no_cache)
    search = None
    if max_drop is not None:
        samples, held_out = _apart(samples, held_out)
        request, search = _search(model, request, max_drop, samples, held_out, batch_size, cache)
    researcher = None
    if samples is not None:
        researcher = Researcher(
            subject, samples, batch_size=batch_size, cache=cache, progress=ProgressBars()
        )
    meter = Meter(
        subject.path, samples=researcher.samples if researcher else None, progress=ProgressBars()
    )
    study, plan = _plan(subject, researcher, meter, plan_path, request)
    statistics = study.calibration
    ready = researcher.factor(plan, study) if researcher else None
    if dry_run:
        plan = evaluate_plan(subject, plan, statistics, ProgressBars(), ready)
    else:
        assert output is not None
        plan = write_compressed(
            subject,
            plan,
            statistics,
            output,
            ready=ready,
            keep_metadata=keep_metadata,
            external_data=external_data,
            progress=ProgressBars(),
        )
        if recovery is not None and researcher is not None:
            print_recovery(_recover(output, researcher, recovery))
    _print_outcome(plan, statistics)
    if search is not None:
        print_search(search)
        plan = plan.model_copy(update={"notes": (*plan.notes, search.answer)})
    if save_plan is not None:
        with atomic_file(save_plan) as temporary:
            temporary.write_text(plan.model_dump_json(indent=2), encoding="utf-8")
    if output is not None and not dry_run:
        out.print(f"written: {output}", markup=False, highlight=False)


def _print_outcome(plan: CompressionPlan, statistics: Calibration | None) -> None:
    print_plan(plan)
    if statistics is None:
        errors.print(_NO_DATA, markup=False, highlight=False)
    for note in (*(statistics.notes if statistics else ()), *plan.notes):
        errors.print(f"note: {note}", markup=False, highlight=False)


def _check_consistent(
    output: Path | None,
    dry_run: bool,
    calibration: Path | None,
    recovery: RecoverySpec | None,
    store: str | None,
) -> None:
    if output is None and not dry_run:
        raise RequestError("no --output: say where to write the model, or use --dry-run")
    if recovery is not None and calibration is None:
        raise RequestError("--recover trains on calibration data: give --calibration")
    if recovery is not None and dry_run:
        raise RequestError("--recover trains the model that --dry-run does not write: drop one")
    if recovery is not None and store not in {None, "same"}:
        raise RequestError(
            f"--recover trains float32 factors, --store {store} rounds them: drop one"
        )


def _check_searchable(
    max_drop: float | None,
    calibration: Path | None,
    validation: Path | None,
    budgets: Mapping[str, float],
    rank: int | None,
    plan_path: Path | None,
) -> None:
    if max_drop is None:
        if validation is not None:
            raise RequestError("--validation is what --max-drop is measured on: give both, or none")
        return
    exclusive: dict[str, object] = {**budgets, "rank": rank, "plan": plan_path}
    for option, value in exclusive.items():
        if value is not None:
            raise RequestError(f"--{option} and --max-drop exclude each other: give one of them")
    if calibration is None and validation is None:
        raise RequestError(
            "--max-drop needs data to measure the drop on: give --validation, or --calibration to "
            "hold a fifth of it out"
        )


def _apart(samples: Samples | None, held_out: Samples | None) -> tuple[Samples | None, Samples]:
    """What to calibrate on, and what to measure on."""
    if held_out is not None:
        return samples, held_out
    assert samples is not None  # see _check_searchable
    return hold_out(samples)


def _search(
    model: Path,
    request: CompressionSpec,
    max_drop: float,
    samples: Samples | None,
    held_out: Samples,
    batch_size: int,
    cache: ArrayCache | None,
) -> tuple[CompressionSpec, SearchReport]:
    with TemporaryDirectory(prefix="compress-onnx-") as work:
        experiment = of_file(
            model,
            samples,
            held_out,
            metric=metric_for(model, held_out, request.objective),
            batch_size=batch_size,
            # What all steps need is kept between them, whatever outlives the search.
            cache=cache or ArrayCache(Path(work) / "cache"),
            progress=ProgressBars(),
        )
        return smallest_within(experiment, request, max_drop, Path(work) / "search")


def _recovery(budget: str | None) -> RecoverySpec | None:
    return None if budget is None else options.validated(RecoverySpec, {"budget": budget})


def _recover(candidate: Path, researcher: Researcher, settings: RecoverySpec) -> RecoveryReport:
    with recovery_step(ProgressBars()) as update:
        return recover_file(
            researcher.subject.path,
            candidate,
            researcher.samples,
            settings,
            batch_size=researcher.batch_size,
            checkpoints=researcher.cache,
            progress=update,
        )


def _plan(
    subject: Subject,
    researcher: Researcher | None,
    meter: Meter,
    plan_path: Path | None,
    request: CompressionSpec,
) -> tuple[Study, CompressionPlan]:
    if plan_path is None:
        study = researcher.study(request) if researcher else Study(concrete(request, "none"))
        study = share_siblings(subject, study)
        return study, plan_study(subject, study, meter)
    plan = read_plan(plan_path)
    require_gain(plan)
    study = researcher.study_plan(plan) if researcher else Study(concrete(request, "none"))
    return rejoin(subject, study, plan), plan
