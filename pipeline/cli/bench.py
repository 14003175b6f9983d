"""``compress-onnx bench``: latency of two models, interleaved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compress_onnx.graph_passes.planning.plan import read_plan
from compress_onnx.pipeline.cli import options, outputs
from compress_onnx.pipeline.cli.console import ProgressBars, print_benchmarks, print_gates
from compress_onnx.pipeline.files.atomic import atomic_file
from compress_onnx.pipeline.files.model_file import model_size
from compress_onnx.pipeline.measure.gates import (
    check_gates,
    check_quantities,
    measured_quantities,
    parse_gate,
)
from compress_onnx.pipeline.measure.latency import measure_latency
from compress_onnx.pipeline.measure.quantities import bench_quantities
from compress_onnx.pipeline.recipe import BenchmarkSpec
from compress_onnx.pipeline.results import BenchmarkReport


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("bench")(bench)


def bench(
    reference: Annotated[Path, typer.Argument(help="The original model.")],
    candidate: Annotated[Path, typer.Argument(help="The model to compare.")],
    provider: Annotated[
        options.Provider, typer.Option(help="cpu, cuda, or auto: measure what is there.")
    ] = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Batch size.")] = 1,
    length: Annotated[int, typer.Option(min=1, help="Sequence length.")] = 128,
    inputs: Annotated[
        Path | None, typer.Option("--inputs", help=".npz to take rows from [default: made up].")
    ] = None,
    mask: options.Mask = None,
    warmup: Annotated[int, typer.Option(min=0, help="Untimed rounds.")] = 10,
    iterations: Annotated[int, typer.Option(min=5, help="Timed rounds.")] = 100,
    threads: options.Threads = None,
    plan: Annotated[
        Path | None, typer.Option(help="The plan of CANDIDATE: adds the ideal speed-up.")
    ] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            "--gate", metavar="LIMIT", help="Fail (exit 1) unless it holds: speedup.cpu>=1"
        ),
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures here.")
    ] = None,
    force: options.Force = False,
) -> None:
    """Time REFERENCE against CANDIDATE, one run each a round, in random order.

    Gates can name `speedup.cpu`, `speedup_low.cpu` (the lower end of its 95 % interval),
    `p50_ms.cpu`, `p99_ms.cpu`, `latency_ratio.cuda`, `size_ratio` and the like:

    `compress-onnx bench model.onnx small.onnx --gate 'size_ratio<=0.9'`
    """
    gates = [parse_gate(text) for text in gate or ()]
    check_quantities(gates, bench_quantities(provider))
    read = (reference, candidate, inputs, plan)
    outputs.check_outputs([outputs.benchmark_file(json_path)], read, force=force)
    settings = BenchmarkSpec(
        provider=provider,
        threads=threads,
        batch=batch,
        length=length,
        warmup=warmup,
        iterations=iterations,
    )
    benchmarks, unmeasured = measure_latency(
        reference,
        candidate,
        settings,
        samples=options.samples_for(reference, inputs, mask) if inputs else None,
        plan=read_plan(plan) if plan else None,
        progress=ProgressBars(),
    )
    print_benchmarks(benchmarks, unmeasured)
    size = model_size(reference, candidate)
    results = check_gates(gates, measured_quantities(None, benchmarks, size))
    if json_path is not None:
        report = BenchmarkReport(
            benchmarks=benchmarks, unmeasured=unmeasured, size=size, gates=results
        )
        with atomic_file(json_path) as temporary:
            temporary.write_text(report.model_dump_json(indent=2), encoding="utf-8")
    if not print_gates(results):
        raise typer.Exit(1)
