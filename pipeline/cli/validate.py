"""``compress-onnx validate``: two graphs of one model on the same data, and where they part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.pipeline.cli import options, outputs
from compress_onnx.pipeline.cli.console import (
    ProgressBars,
    note,
    print_gates,
    print_inside,
    print_runtime,
    print_tolerances,
    print_validation,
)
from compress_onnx.pipeline.cli.help import OneScreen
from compress_onnx.pipeline.cli.html import Html, command_line, write_html
from compress_onnx.pipeline.divergence.find import compare_inside
from compress_onnx.pipeline.files.model_file import model_size
from compress_onnx.pipeline.measure.domains import with_domains
from compress_onnx.pipeline.measure.gates import (
    asks_for,
    check_gates,
    check_quantities,
    measured_quantities,
    parse_gate,
)
from compress_onnx.pipeline.measure.providers import Requested
from compress_onnx.pipeline.measure.quantities import validate_quantities
from compress_onnx.pipeline.measure.runtime_checks import check_runtime
from compress_onnx.pipeline.measure.tolerance import parse_tolerances
from compress_onnx.pipeline.measure.validate import validate as validate_models
from compress_onnx.pipeline.measure.validate import validate_on
from compress_onnx.pipeline.report.page import comparison_page
from compress_onnx.pipeline.report.writer import report_json, write_text
from compress_onnx.pipeline.results import (
    ComparisonReport,
    InnerComparison,
    RuntimeChecks,
    ValidationReport,
)
from compress_onnx.pipeline.runtime.batches import model_batches
from compress_onnx.pipeline.runtime.environment import environment
from compress_onnx.pipeline.runtime.generated import generated_samples
from compress_onnx.pipeline.runtime.inputs import load_structure
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import Optimization, Provider, SessionSpec, open_session

_MADE_UP_SAMPLES = 16
_LOOKED_INSIDE = 2
"""Samples that two graphs are compared value by value on: all values are in memory at once."""

_LEVELS = get_args(Optimization)


def _level(text: str) -> str:
    if text not in _LEVELS:
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(map(repr, _LEVELS))}.")
    return text


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("validate", cls=OneScreen)(validate)


def validate(
    reference: Annotated[Path, typer.Argument(help="The original model.")],
    candidate: Annotated[Path, typer.Argument(help="The model to check.")],
    inputs: Annotated[
        Path | None,
        typer.Option("--inputs", help=".npz to compare on [default: made-up inputs]."),
    ] = None,
    domain: options.Domains = None,
    mask: options.Mask = None,
    gate: Annotated[
        list[str] | None,
        typer.Option("--gate", metavar="LIMIT", help="Fail (exit 1) unless it holds: max_abs<=0.1"),
    ] = None,
    atol: Annotated[
        list[str] | None,
        typer.Option(metavar="[OUTPUT:]X", help="Fail where a number is off by more than this."),
    ] = None,
    rtol: Annotated[
        list[str] | None,
        typer.Option(metavar="[OUTPUT:]X", help="And by this times the reference's number."),
    ] = None,
    provider: options.Providers = None,
    level: Annotated[
        list[str] | None,
        typer.Option(
            "--optimization",
            parser=_level,
            metavar=f"[{'|'.join(_LEVELS)}]",
            help="ONNX Runtime's optimizations of both graphs; several times [default: all].",
        ),
    ] = None,
    batch_invariance: Annotated[
        bool,
        typer.Option("--batch-invariance", help="Also run samples alone and in padded batches."),
    ] = False,
    runtime: Annotated[
        bool,
        typer.Option(
            "--runtime", help="Also hold each graph against itself: runs, threads, optimizations."
        ),
    ] = False,
    explain: Annotated[
        bool | None,
        typer.Option(
            "--explain/--no-explain",
            help="Find the first tensor that differs [default: where a tolerance is exceeded].",
        ),
    ] = None,
    html: Html = None,
    size: Annotated[
        list[str] | None,
        typer.Option(metavar="BxL", help="Made-up inputs: samples x length; several times."),
    ] = None,
    length: Annotated[int, typer.Option(min=1, help="Made-up inputs: sequence length.")] = 32,
    batch_size: options.BatchSize = 32,
    threads: options.Threads = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures here.")
    ] = None,
    force: options.Force = False,
) -> None:
    """Compare the outputs of CANDIDATE with those of REFERENCE, and hold gates against them.

    Gates can name `relative_l2`, `max_abs`, `min_output_cosine` (the worst of all outputs),
    `output.NAME.cosine` and the like, `batch_invariance` (the least cosine between a sample's
    outputs alone and in a padded batch), `size_ratio` and `parameter_ratio`:

    `compress-onnx validate model.onnx small.onnx --inputs data.npz --gate 'relative_l2<=0.1'`

    With `--provider cpu --provider cuda`, `relative_l2.cuda` is that on one provider; a name
    without a provider is that of the first.

    With `--optimization all --optimization off`, `relative_l2.off` is that without optimizations.

    With `--domain news=news.npz` the same is told of other kinds of data: `relative_l2.news`, and
    `relative_l2.worst` of all sets.

    Graphs that should compute the same (another exporter, opset, precision or optimizer) have
    tolerances: `--atol 1e-4 --rtol 1e-3`. Where one is exceeded, the first tensor that differs is
    found, with its node and the likely cause.

    Real inputs matter: a model compressed for real data looks worse on made-up ones than it is.
    """
    gates = [parse_gate(text) for text in gate or ()]
    requested = cast("list[Requested]", provider or ["cpu"])  # one of typer's choices
    names = [value.name for value in load_structure(reference).graph.output]
    tolerances = parse_tolerances(atol or (), rtol or (), names)
    domains = options.named_files(domain)
    if domains and inputs is None:
        raise RequestError("domains stand beside the set that decides: give --inputs")
    if size and inputs is not None:
        raise RequestError("--size is of made-up inputs: drop it, or --inputs")
    levels = cast("list[Optimization]", list(dict.fromkeys(level or ["all"])))
    sets = (*(domains or (size or ())[1:]), *levels[1:])
    check_quantities(gates, validate_quantities(names, providers=requested, domains=sets))
    written = [
        outputs.figures_file(json_path, "validation", "gates"),
        outputs.page_file(html),
    ]
    read = (reference, candidate, inputs, *domains.values())
    outputs.check_outputs(written, read, force=force)
    if inputs is not None:
        samples = options.samples_for(reference, inputs, mask)
        further = {name: options.samples_for(reference, p, mask) for name, p in domains.items()}
    else:
        note("no --inputs, comparing on made-up inputs")
        samples, further = _made_up(reference, size or [f"{_MADE_UP_SAMPLES}x{length}"])
    spec = SessionSpec(threads=threads, optimization=levels[0])

    def measure(
        place: Provider, on: Samples = samples, optimization: Optimization = levels[0]
    ) -> ValidationReport:
        with ProgressBars().step(f"validate on {place}", len(on)) as update:
            return validate_models(
                reference,
                candidate,
                on,
                spec=spec.model_copy(update={"provider": place, "optimization": optimization}),
                batch_size=batch_size,
                batch_invariance=batch_invariance or asks_for(gates, "batch_invariance"),
                tolerances=tolerances,
                progress=update,
            )

    report = validate_on(requested, measure)
    others = {name: partial(measure, on=on) for name, on in further.items()}
    others |= {name: partial(measure, optimization=name) for name in levels[1:]}
    found = {name: validate_on(requested[:1], again) for name, again in others.items()}
    report = with_domains(report, found)
    print_validation(report)
    within = print_tolerances(report)
    inside: InnerComparison | None = None
    if explain or html is not None or (explain is None and not within):
        inside = compare_inside(reference, candidate, _few(reference, samples), spec=spec)
        print_inside(inside)
    checks = _checks(reference, candidate, _few(reference, samples), spec) if runtime else {}
    size_report = model_size(reference, candidate)
    results = check_gates(gates, measured_quantities(report, size=size_report), report.unmeasured)
    written_report = ComparisonReport(
        validation=report,
        inside=inside,
        runtime=checks,
        size=size_report,
        gates=results,
        environment=environment(),
    )
    if json_path is not None:
        write_text(json_path, report_json(written_report))
    if html is not None:
        name = f"{candidate.name} against {reference.name}"
        write_html(html, comparison_page(written_report, name, command_line()))
    if not print_gates(results) or not within:
        raise typer.Exit(1)


def _made_up(model: Path, sizes: Sequence[str]) -> tuple[Samples, dict[str, Samples]]:
    """Samples of the first size ``BxL``, and those of the others by size.

    Raises:
        RequestError: a size is none.
    """
    structure, found = load_structure(model), {}
    for text in sizes:
        batch, cross, length = text.partition("x")
        if not (cross and batch.isdecimal() and length.isdecimal() and int(batch) * int(length)):
            raise RequestError(f"--size {text}: give samples x length, such as 8x128")
        found[text] = generated_samples(structure, batch=int(batch), length=int(length), seed=0)
    first, *others = found
    return found[first], {name: found[name] for name in others}


def _checks(
    reference: Path, candidate: Path, feeds: Mapping[str, Array], spec: SessionSpec
) -> dict[str, RuntimeChecks]:
    models = {"reference": reference, "candidate": candidate}
    checks = {name: check_runtime(model, feeds, spec) for name, model in models.items()}
    print_runtime(checks)
    return checks


def _few(model: Path, samples: Samples) -> Mapping[str, Array]:
    """The first samples, as many as the graph's batch where that is fixed."""
    return next(iter(model_batches(open_session(model), samples, _LOOKED_INSIDE))).feeds
