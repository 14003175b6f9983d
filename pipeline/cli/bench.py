"""``compress-onnx bench``: latency, throughput, start-up and memory of two models, interleaved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compress_onnx.graph_passes.planning.plan import read_plan
from compress_onnx.pipeline.cli import options, outputs
from compress_onnx.pipeline.cli.console import (
    ProgressBars,
    print_benchmarks,
    print_gates,
    print_loadings,
)
from compress_onnx.pipeline.cli.help import OneScreen
from compress_onnx.pipeline.files.model_file import model_size
from compress_onnx.pipeline.measure.gates import (
    check_gates,
    check_quantities,
    measured_quantities,
    parse_gate,
)
from compress_onnx.pipeline.measure.latency import measure_latency
from compress_onnx.pipeline.measure.loading import measure_loadings
from compress_onnx.pipeline.measure.quantities import bench_quantities
from compress_onnx.pipeline.recipe import BenchmarkSpec
from compress_onnx.pipeline.report.writer import report_json, write_text
from compress_onnx.pipeline.results import BenchmarkReport
from compress_onnx.pipeline.runtime.environment import environment


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("bench", cls=OneScreen)(bench)


def bench(
    reference: Annotated[Path, typer.Argument(help="The original model.")],
    candidate: Annotated[Path, typer.Argument(help="The model to compare.")],
    provider: Annotated[
        options.Provider, typer.Option(help="Where to run; auto measures on what is there.")
    ] = "auto",
    batch: options.Batches = None,
    length: options.Lengths = None,
    inputs: Annotated[
        Path | None, typer.Option("--inputs", help=".npz to take rows from [default: made up].")
    ] = None,
    mask: options.Mask = None,
    warmup: Annotated[int, typer.Option(min=0, help="Untimed rounds.")] = 10,
    iterations: Annotated[int, typer.Option(min=5, help="Timed rounds.")] = 100,
    threads: options.ThreadCounts = None,
    loads: Annotated[
        int,
        typer.Option(
            min=0, help="Rounds that open both models in fresh processes; 0 leaves that out."
        ),
    ] = 5,
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

    Of several sizes, as in `--batch 1,8 --length 16,128`, every combination is measured, also with
    each of several numbers of threads. Beside latency: samples a second, the time to open a
    session, and the memory that a fresh process takes to open a model and run it.

    Gates can name `speedup.cpu`, `speedup_low.cpu` (the lower end of its 95 % interval),
    `p50_ms.cpu`, `p99_ms.cpu`, `latency_ratio.cuda`, `samples_per_s.cpu`, `load_ratio.cpu`,
    `resident_ratio.cpu`, `size_ratio` and the like:

    `compress-onnx bench model.onnx small.onnx --gate 'size_ratio<=0.9'`

    Of several sizes, `speedup.cpu` is the worst, and that of one is speedup.cpu.8x128.
    """
    gates = [parse_gate(text) for text in gate or ()]
    counts = threads or options.Numbers()
    settings = BenchmarkSpec(
        provider=provider,
        batch=batch or (1,),
        length=length or (128,),
        warmup=warmup,
        iterations=iterations,
    )
    check_quantities(gates, bench_quantities(settings, counts, loading=loads > 0))
    read = (reference, candidate, inputs, plan)
    figures = outputs.figures_file(json_path, "benchmarks", "unmeasured")
    outputs.check_outputs([figures], read, force=force)
    samples = options.samples_for(reference, inputs, mask) if inputs else None
    benchmarks, unmeasured = measure_latency(
        reference,
        candidate,
        settings,
        threads=counts,
        samples=samples,
        plan=read_plan(plan) if plan else None,
        progress=ProgressBars(),
    )
    print_benchmarks(benchmarks, unmeasured)
    loadings = measure_loadings(
        reference,
        candidate,
        benchmarks,
        settings,
        rounds=loads,
        samples=samples,
        progress=ProgressBars(),
    )
    print_loadings(loadings)
    size = model_size(reference, candidate)
    report = BenchmarkReport(
        benchmarks=benchmarks,
        unmeasured=unmeasured,
        size=size,
        loadings=loadings,
        gates=check_gates(gates, measured_quantities(None, benchmarks, size, loadings), unmeasured),
        environment=environment(),
    )
    if json_path is not None:
        write_text(json_path, report_json(report))
    if not print_gates(report.gates):
        raise typer.Exit(1)
