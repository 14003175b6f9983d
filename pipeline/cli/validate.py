"""``compress-onnx validate``: two versions of one model on the same data."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, cast

import typer

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.pipeline.cli import options, outputs
from compress_onnx.pipeline.cli.console import ProgressBars, errors, print_gates, print_validation
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
from compress_onnx.pipeline.measure.validate import validate as validate_models
from compress_onnx.pipeline.measure.validate import validate_on
from compress_onnx.pipeline.report.writer import report_json, write_text
from compress_onnx.pipeline.results import ComparisonReport, ValidationReport
from compress_onnx.pipeline.runtime.environment import environment
from compress_onnx.pipeline.runtime.inputs import (
    constants_among,
    load_structure,
    model_inputs,
    synthetic_feeds,
)
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import Provider, SessionSpec

_MADE_UP_SAMPLES = 16


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("validate")(validate)


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
    provider: options.Providers = None,
    batch_invariance: Annotated[
        bool,
        typer.Option("--batch-invariance", help="Also run samples alone and in padded batches."),
    ] = False,
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

    With `--domain news=news.npz` the same is told of other kinds of data: `relative_l2.news`, and
    `relative_l2.worst` of all sets.

    Real inputs matter: a model compressed for real data looks worse on made-up ones than it is.
    """
    gates = [parse_gate(text) for text in gate or ()]
    requested = cast("list[Requested]", provider or ["cpu"])  # one of typer's choices
    names = [value.name for value in load_structure(reference).graph.output]
    domains = options.named_files(domain)
    if domains and inputs is None:
        raise RequestError("domains stand beside the set that decides: give --inputs")
    check_quantities(gates, validate_quantities(names, providers=requested, domains=tuple(domains)))
    written = outputs.comparison_file(json_path)
    read = (reference, candidate, inputs, *domains.values())
    outputs.check_outputs([written], read, force=force)
    if inputs is not None:
        samples = options.samples_for(reference, inputs, mask)
    else:
        errors.print("note: no --inputs, comparing on made-up inputs", markup=False)
        declared = model_inputs(load_structure(reference))
        feeds = synthetic_feeds(declared, batch=_MADE_UP_SAMPLES, length=length, seed=0)
        constants = constants_among(feeds, declared)
        samples = Samples(feeds, origin="made-up inputs", constants=constants)

    further = {name: options.samples_for(reference, path, mask) for name, path in domains.items()}

    def measure(place: Provider, on: Samples = samples) -> ValidationReport:
        with ProgressBars().step(f"validate on {place}", len(on)) as update:
            return validate_models(
                reference,
                candidate,
                on,
                spec=SessionSpec(provider=place, threads=threads),
                batch_size=batch_size,
                batch_invariance=batch_invariance or asks_for(gates, "batch_invariance"),
                progress=update,
            )

    report = validate_on(requested, measure)
    found = {n: validate_on(requested[:1], partial(measure, on=on)) for n, on in further.items()}
    report = with_domains(report, found)
    print_validation(report)
    size = model_size(reference, candidate)
    results = check_gates(gates, measured_quantities(report, size=size), report.unmeasured)
    if json_path is not None:
        written_report = ComparisonReport(
            validation=report, size=size, gates=results, environment=environment()
        )
        write_text(json_path, report_json(written_report))
    if not print_gates(results):
        raise typer.Exit(1)
