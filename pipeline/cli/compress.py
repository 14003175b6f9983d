"""``compress-onnx compress``: one ONNX file in, a smaller one out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from compress_onnx.graph_passes.allocation import ALLOCATORS
from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.planning.plan import CompressionPlan, read_plan
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.cli import options, outputs
from compress_onnx.pipeline.cli.console import (
    note,
    out,
    print_outcome,
    print_plan,
    print_recovery,
    print_search,
)
from compress_onnx.pipeline.cli.grouped import grouped
from compress_onnx.pipeline.cli.help import OneScreen
from compress_onnx.pipeline.compress.compressed import Compressed
from compress_onnx.pipeline.compress.holdout import hold_out, hold_out_if_enough, metric_for
from compress_onnx.pipeline.compress.learn import Learned, learn
from compress_onnx.pipeline.compress.outcome import measure_outcome
from compress_onnx.pipeline.compress.search import Found, smallest_within
from compress_onnx.pipeline.files.model_file import data_files
from compress_onnx.pipeline.recipe import RecoverySpec
from compress_onnx.pipeline.recover.recover import (
    Lessons,
    check_trainable,
    recover_file,
    recovery_step,
)
from compress_onnx.pipeline.report.formats import significant
from compress_onnx.pipeline.report.writer import report_json, write_text
from compress_onnx.pipeline.results import Outcome, RecoveryReport
from compress_onnx.pipeline.runtime.samples import Samples

_NO_DATA = (
    "no --calibration, so errors are those of the weights alone and nothing is known about "
    "the outputs; a few hundred real samples make the same size far more accurate"
)


@dataclass(frozen=True)
class Budget:
    """Budget."""

    params: options.Params = None
    bytes_: options.Bytes = None
    flops: options.Flops = None
    latency: options.Latency = None
    rank: options.Rank = None
    max_drop: options.MaxDrop = None

    @property
    def shares(self) -> dict[str, float]:
        """Shares, or the rank, that were given, by name."""
        return options.budgets(self.params, self.bytes_, self.flops, self.latency, self.rank)


@dataclass(frozen=True)
class Which:
    """Layers."""

    include: Annotated[
        list[str] | None, typer.Option(help="Compress only sites that match (glob).")
    ] = None
    exclude: Annotated[
        list[str] | None, typer.Option(help="Leave sites that match as they are (glob).")
    ] = None
    group: Annotated[
        Literal["all", "attention", "mlp", "other"], typer.Option(help="Only layers of this kind.")
    ] = "all"


@dataclass(frozen=True)
class How:
    """Method."""

    method: options.Method = "auto"
    allocation: Annotated[
        str, typer.Option(help=f"How ranks are shared out: auto, {', '.join(ALLOCATORS)}.")
    ] = "auto"
    sequential: Annotated[
        bool | None,
        typer.Option(
            "--sequential/--one-shot",
            help="Let each site repair the errors of the earlier ones [default: if auto].",
        ),
    ] = None
    objective: Annotated[
        Literal["positions", "pooled"] | None,
        typer.Option(help="What about the outputs matters."),
    ] = None
    shrinkage: options.ShrinkageText = None
    store: options.Store = None
    siblings: Annotated[
        Literal["auto", "never"],
        typer.Option(help="Query and key, say, share a factor: where better, or never."),
    ] = "never"
    ffns: Annotated[
        Literal["factor", "neurons"],
        typer.Option(help="Feed-forward networks: factor each weight, or take neurons out."),
    ] = "factor"
    rank_multiple: Annotated[int, typer.Option(min=1, help="Ranks are multiples of this.")] = 8
    allow_larger: Annotated[
        bool, typer.Option("--allow-larger", help="Also rewrite where factors are not smaller.")
    ] = False
    recover: options.Recover = None


@dataclass(frozen=True)
class Plan:
    """Plan."""

    plan: Annotated[
        Path | None, typer.Option("--plan", help="Apply this plan instead of making one.")
    ] = None
    save_plan: Annotated[
        Path | None, typer.Option("--save-plan", help="Write the plan as JSON.")
    ] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan with its errors; write no model.")
    ] = False


@dataclass(frozen=True)
class FurtherData:
    """Data."""

    broader: options.BroaderFiles = None


@dataclass(frozen=True)
class Output:
    """Output."""

    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The .onnx file to write.")
    ] = None
    keep_metadata: Annotated[
        bool, typer.Option("--keep-metadata", help="Keep what the exporter wrote about sources.")
    ] = False
    external_data: Annotated[
        bool | None,
        typer.Option(
            "--external-data/--inline", help="Weights in a file of their own [default: by size]."
        ),
    ] = None
    no_benchmark: Annotated[
        bool, typer.Option("--no-benchmark", help="Leave out the seconds that tell its speed.")
    ] = False
    json_path: options.Json = None
    force: options.Force = False


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("compress", cls=OneScreen)(grouped(compress))


def compress(
    model: options.Model,
    output: Output,
    budget: Budget,
    data: options.Data,
    which: Which,
    how: How,
    plan: Plan,
    further: FurtherData,
) -> None:
    """Replace the linear layers of MODEL by low-rank factors.

    `--params`, `--bytes`, `--flops` or `--latency` say how much of the original the selected layers
    may take; without any, and without `--rank`, half of the parameters. With `--calibration`, the
    method `auto` weighs every site by what it does to the outputs, shares the ranks out by that,
    and lets later sites repair earlier ones; without, it is plain SVD, which loses far more
    accuracy at the same size. `--dry-run` shows the plan first:

    `compress-onnx compress model.onnx --method svd --params 0.5 --dry-run`

    `compress-onnx compress model.onnx -c data.npz --params 0.5 -o small.onnx`

    Every fifth calibration sample is held out, and the error of the plan is told for both parts:
    on the samples that it was made from, too little data looks perfect.

    With `--max-drop 0.02` the share is found by measuring: on `--validation`, or on every fifth
    calibration sample. One half of these samples chooses the
    share, the other half tells what it costs. The drop is one of accuracy where that data has
    `labels`, one of cosine with `--objective pooled`, else the relative L2 of the outputs.

    After writing, both models run on the samples that were held out, and then in turn for some
    seconds: size, speed, what the outputs lose, and a verdict, whether to deploy the result or not.

    What calibration says holds for text of its kind. `--shrinkage broader:0.3 --broader
    news=news.npz` pulls it towards other data, which costs a little on its own kind and gains more
    on others; `identity:0.1` needs no other data.

    With `--recover 10min` what was compressed is then trained to reproduce the outputs of MODEL on
    the calibration data; a run that is killed goes on where it was when it is repeated.
    """
    recovery = None if how.recover is None else _recovery(how.recover)
    _check_output(output, plan)
    _check_recovery(recovery, data, how, plan)
    _check_search(budget, data, plan)
    _check_plan(plan, budget, which, how)
    request = _request(budget, which, how)
    written = (
        outputs.model_file(output.output),
        outputs.figures_file(plan.save_plan, "allocation", "sites"),
        outputs.figures_file(output.json_path, "advice", "size"),
    )
    broader = options.named_files(further.broader)
    if plan.plan is None:
        options.check_broader(broader, how.shrinkage, data.calibration)
    read = (model, data.calibration, data.validation, plan.plan, *broader.values())
    outputs.check_outputs(written, read, force=output.force)
    if recovery is not None:
        check_trainable(model)
    samples, held_out = (
        None if path is None else options.labelled_samples_for(model, path, data.mask)
        for path in (data.calibration, data.validation)
    )
    if samples is not None and held_out is None:
        split = hold_out_if_enough if budget.max_drop is None else hold_out
        samples, held_out = split(samples)
    settings = options.settings(data.no_cache, batch_size=data.batch_size, backend=data.backend)
    learned = learn(
        model,
        samples,
        settings,
        priced_on=samples or held_out,
        held_out=held_out if samples else None,
        broader={n: options.samples_for(model, path, data.mask) for n, path in broader.items()},
    )
    compressed, found = _compressed(learned, request, budget.max_drop, held_out, plan)
    done = _carried_out(compressed, output, plan)
    if recovery is not None:
        assert output.output is not None  # see _check_recovery
        print_recovery(_recovered(output.output, learned, recovery))
    _print_planned(done, learned)
    if found is not None:
        print_search(found.report)
        done = done.model_copy(update={"notes": (*done.notes, found.report.answer)})
    if plan.save_plan is not None:
        write_text(plan.save_plan, done.model_dump_json(indent=2))
    if not plan.dry_run:
        assert output.output is not None  # see _check_output
        unseen = held_out if found is None else found.reporting
        outcome = _outcome(learned, unseen, request, output, budget.max_drop)
        print_outcome(outcome)
        if output.json_path is not None:
            write_text(output.json_path, report_json(outcome))
        out.print(f"written: {output.output}", markup=False, highlight=False)


def _compressed(
    learned: Learned,
    request: CompressionSpec,
    max_drop: float | None,
    held_out: Samples | None,
    plan: Plan,
) -> tuple[Compressed, Found | None]:
    """What comes of the plan, of the search, or of the request."""
    if plan.plan is not None:
        return learned.apply(read_plan(plan.plan)), None
    if max_drop is None:
        return learned.compress(request), None
    assert held_out is not None  # see compress
    metric = metric_for(learned.original.path, held_out, request.objective)
    found = smallest_within(learned, request, max_drop, held_out, metric)
    return found.compressed, found


def _carried_out(compressed: Compressed, output: Output, plan: Plan) -> CompressionPlan:
    """The plan with its errors, after writing the model unless it is a dry run."""
    if plan.dry_run:
        return compressed.evaluated()
    assert output.output is not None  # see _check_output
    return compressed.write(
        output.output, keep_metadata=output.keep_metadata, external_data=output.external_data
    )


def _outcome(
    learned: Learned,
    held_out: Samples | None,
    request: CompressionSpec,
    output: Output,
    max_drop: float | None,
) -> Outcome:
    """What was written, measured against its original."""
    assert output.output is not None  # see _check_output
    reference, metric = learned.original.path, None
    if held_out is not None:
        metric = metric_for(reference, held_out, request.objective)
    # A model above the limit of one file is not loaded twice more without being asked.
    untimed = output.no_benchmark or bool(data_files(learned.original.model))
    return measure_outcome(
        reference,
        output.output,
        held_out,
        learned.settings,
        feeds=None if untimed else learned.meter.feeds_at_several_sizes(),
        metric=metric,
        max_drop=max_drop,
    )


def _print_planned(plan: CompressionPlan, learned: Learned) -> None:
    print_plan(plan)
    calibration = learned.calibration
    if calibration is None:
        note(_NO_DATA)
    if (unseen := plan.held_out_error) is not None:
        out.print(
            f"the same on samples held out of calibration: error {significant(unseen.reached)}",
            highlight=False,
        )
    elif calibration is not None:
        note("too few samples to hold any out: on others, the error is larger than this one")
    for text in (*(calibration.notes if calibration else ()), *plan.notes):
        note(text)


def _request(budget: Budget, which: Which, how: How) -> CompressionSpec:
    return options.validated(
        CompressionSpec,
        {
            "method": options.method_spec(how.method),
            **budget.shares,
            "allocation": how.allocation,
            "sequential": how.sequential,
            "objective": how.objective,
            "shrinkage": how.shrinkage,
            "store": how.store or "same",
            "siblings": how.siblings,
            "ffns": how.ffns,
            "rank_multiple": how.rank_multiple,
            "allow_larger": how.allow_larger,
            "select": {
                "include": which.include or ["*"],
                "exclude": which.exclude or [],
                "group": which.group,
            },
        },
    )


def _check_output(output: Output, plan: Plan) -> None:
    if output.output is None and not plan.dry_run:
        raise RequestError("no --output: say where to write the model, or use --dry-run")


def _check_recovery(
    recovery: RecoverySpec | None, data: options.Data, how: How, plan: Plan
) -> None:
    if recovery is None:
        return
    if data.calibration is None:
        raise RequestError("--recover trains on calibration data: give --calibration")
    if plan.dry_run:
        raise RequestError("--recover trains the model that --dry-run does not write: drop one")
    if how.store not in {None, "same"}:
        raise RequestError(
            f"--recover trains float32 factors, --store {how.store} rounds them: drop one"
        )


def _check_search(budget: Budget, data: options.Data, plan: Plan) -> None:
    if budget.max_drop is None:
        if data.validation is not None:
            raise RequestError("--validation is what --max-drop is measured on: give both, or none")
        return
    exclusive: dict[str, object] = {**budget.shares, "plan": plan.plan}
    for option, value in exclusive.items():
        if value is not None:
            raise RequestError(f"--{option} and --max-drop exclude each other: give one of them")
    if data.calibration is None and data.validation is None:
        raise RequestError(
            "--max-drop needs data to measure the drop on: give --validation, or --calibration to "
            "hold a fifth of it out"
        )


def _check_plan(plan: Plan, *groups: Any) -> None:  # noqa: ANN401
    """A plan has decided everything: what else decides is refused beside it."""
    if plan.plan is None:
        return
    for group in groups:
        for name, default in vars(type(group)()).items():
            if name != "recover" and getattr(group, name) != default:
                option = name.strip("_").replace("_", "-")
                raise RequestError(
                    f"--plan says what every site becomes, --{option} says it too: drop one of them"
                )


def _recovery(budget: str) -> RecoverySpec:
    return options.validated(RecoverySpec, {"budget": budget})


def _recovered(candidate: Path, learned: Learned, settings: RecoverySpec) -> RecoveryReport:
    assert learned.samples is not None  # see _check_recovery
    run = learned.settings
    with recovery_step(run.progress) as update:
        return recover_file(
            learned.original.path,
            candidate,
            Lessons(learned.samples),
            settings,
            batch_size=run.batch_size,
            checkpoints=run.cache and run.cache.checkpoints,
            progress=update,
        )
