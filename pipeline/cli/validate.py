"""``compress-onnx validate``: two versions of one model on the same data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compress_onnx.pipeline.cli import options
from compress_onnx.pipeline.cli.console import ProgressBars, errors, print_gates, print_validation
from compress_onnx.pipeline.files.model_file import model_size
from compress_onnx.pipeline.measure.gates import (
    check_gates,
    check_quantities,
    measured_quantities,
    parse_gate,
)
from compress_onnx.pipeline.measure.quantities import validate_quantities
from compress_onnx.pipeline.measure.validate import validate as validate_models
from compress_onnx.pipeline.runtime.inputs import (
    constants_among,
    load_structure,
    model_inputs,
    synthetic_feeds,
)
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import SessionSpec

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
    mask: options.Mask = None,
    gate: Annotated[
        list[str] | None,
        typer.Option("--gate", metavar="LIMIT", help="Fail (exit 1) unless it holds: max_abs<=0.1"),
    ] = None,
    provider: Annotated[options.Device, typer.Option(help="Where both run.")] = "cpu",
    length: Annotated[int, typer.Option(min=1, help="Made-up inputs: sequence length.")] = 32,
    batch_size: options.BatchSize = 32,
    threads: options.Threads = None,
) -> None:
    """Compare the outputs of CANDIDATE with those of REFERENCE, and hold gates against them.

    Gates can name `relative_l2`, `max_abs`, `min_output_cosine` (the worst of all outputs),
    `output.NAME.cosine` and the like, `size_ratio` and `parameter_ratio`:

    `compress-onnx validate model.onnx small.onnx --inputs data.npz --gate 'relative_l2<=0.1'`

    Real inputs matter: a model compressed for real data looks worse on made-up ones than it is.
    """
    gates = [parse_gate(text) for text in gate or ()]
    outputs = [value.name for value in load_structure(reference).graph.output]
    check_quantities(gates, validate_quantities(outputs))
    if inputs is not None:
        samples = options.samples_for(reference, inputs, mask)
    else:
        errors.print("note: no --inputs, comparing on made-up inputs", markup=False)
        declared = model_inputs(load_structure(reference))
        feeds = synthetic_feeds(declared, batch=_MADE_UP_SAMPLES, length=length, seed=0)
        constants = constants_among(feeds, declared)
        samples = Samples(feeds, origin="made-up inputs", constants=constants)
    with ProgressBars().step("validate", len(samples)) as update:
        report = validate_models(
            reference,
            candidate,
            samples,
            spec=SessionSpec(provider=provider, threads=threads),
            batch_size=batch_size,
            progress=update,
        )
    print_validation(report)
    quantities = measured_quantities(report, size=model_size(reference, candidate))
    if not print_gates(check_gates(gates, quantities)):
        raise typer.Exit(1)
