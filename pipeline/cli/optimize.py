"""``compress-onnx optimize``: the smallest, fastest model within a drop, beside its rivals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.pipeline.cli import options, outputs
from compress_onnx.pipeline.cli.console import note, out, print_optimized, print_size
from compress_onnx.pipeline.cli.grouped import grouped
from compress_onnx.pipeline.cli.help import OneScreen
from compress_onnx.pipeline.cli.html import Html, command_line, write_html
from compress_onnx.pipeline.compress.holdout import hold_out, metric_for
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.compress.optimize import optimize as optimized
from compress_onnx.pipeline.divergence.depth import depth_profile
from compress_onnx.pipeline.files.model_file import model_size
from compress_onnx.pipeline.recipe import BenchmarkSpec, OptimizeSpec, RecoverySpec
from compress_onnx.pipeline.report.drawing import require_pictures
from compress_onnx.pipeline.report.page import optimize_page
from compress_onnx.pipeline.report.pictures import draw_front
from compress_onnx.pipeline.report.trials import pareto_json
from compress_onnx.pipeline.report.writer import write_text
from compress_onnx.pipeline.results import OptimizeReport, SizeReport
from compress_onnx.pipeline.runtime.duration import parse_duration
from compress_onnx.pipeline.runtime.environment import environment
from compress_onnx.pipeline.runtime.session import SessionSpec, require_provider


@dataclass(frozen=True)
class Goal:
    """Goal."""

    max_drop: Annotated[
        float, typer.Option("--max-drop", min=0, help="What may be lost, on held-out samples.")
    ] = 0.01
    objective: Annotated[Literal["latency", "size"], typer.Option(help="What is to be least.")] = (
        "latency"
    )
    outputs: Annotated[
        Literal["positions", "pooled"],
        typer.Option(help="What about the outputs matters: each position, or their mean."),
    ] = "positions"
    integers: Annotated[
        bool, typer.Option("--integers/--no-integers", help="Let layers multiply integers.")
    ] = True
    seven_bits: Annotated[
        bool | None,
        typer.Option(
            "--seven-bits/--eight-bits",
            help="Weights that no CPU overflows by [default: if this one has no VNNI].",
        ),
    ] = None
    batch_invariance: Annotated[
        float | None,
        typer.Option(
            "--batch-invariance",
            min=0,
            max=1,
            help="The least cosine between a sample alone and in a batch, such as 0.9999.",
        ),
    ] = None
    time: Annotated[
        str, typer.Option("--time", metavar="TIME", help="Try nothing new after: 90s, 10min, 1h.")
    ] = "15min"
    recover: options.Recover = None


@dataclass(frozen=True)
class Timing:
    """Runs."""

    provider: Annotated[options.Device, typer.Option(help="Where it is to run.")] = "cpu"
    batch: options.Batches = None
    length: options.Lengths = None
    iterations: Annotated[int, typer.Option(min=5, help="Timed rounds of each size.")] = 60
    threads: options.Threads = None


@dataclass(frozen=True)
class Other:
    """Other domains."""

    domain: options.Domains = None
    shrinkage: options.ShrinkageText = None
    broader: options.BroaderFiles = None


@dataclass(frozen=True)
class Written:
    """Output."""

    output: Annotated[Path, typer.Option("-o", "--output", help="The .onnx file to write.")]
    report: Annotated[
        Path | None,
        typer.Option("--report", "--json", metavar="FILE", help="Write all trials as JSON."),
    ] = None
    log: Annotated[
        Path | None, typer.Option("--log", help="Keep trials here, and go on from them.")
    ] = None
    pareto: Annotated[
        Path | None,
        typer.Option("--pareto", help="Write drop, size and speed of all trials as JSON."),
    ] = None
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Draw these: a .png or .svg file.")
    ] = None
    html: Html = None
    force: options.Force = False


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("optimize", cls=OneScreen)(grouped(optimize))


def optimize(
    model: options.Model,
    written: Written,
    goal: Goal,
    data: options.Data,
    timing: Timing,
    other: Other,
) -> None:
    """Find the fastest (or smallest) form of MODEL within a drop, and write it.

    Tried are fewer neurons in feed-forward networks, low-rank factors beside them, and integers
    (on CUDA half floats), each as small as the drop allows. Beside them stand ONNX Runtime's own
    tools: dynamic int8, weights of 8 and 4 bits, on CUDA half floats. What is written is the best
    of all; ours only where it is at least 1.02 times as good as what there is without it. With
    `--recover 5min` two candidates just beyond the drop are trained so long each to do what MODEL
    does, integers through their rounding.

    `compress-onnx optimize model.onnx -c data.npz --max-drop 0.01 -o small.onnx`

    Of several sizes, as in `--batch 1,8 --length 16,128`, every combination is timed, and the
    fastest is so in the geometric mean; the verdict says at which sizes it is slower.

    With `--batch-invariance 0.9999` nothing wins whose answers depend on what else is in the batch,
    as those of dynamic int8 do.

    With `--domain news=news.npz` the drop of the best is also told on other kinds of data, and with
    `--shrinkage broader:0.3 --broader web=web.npz` less is lost there.

    The drop is one of accuracy where the data has `labels`, one of cosine with
    `--outputs pooled`, else the relative L2 of the worst output. Half of the held-out samples
    choose, the other half report.
    """
    require_provider(timing.provider)
    if data.calibration is None:
        raise RequestError("optimize chooses by data: give --calibration data.npz")
    try:
        time_s = parse_duration(goal.time)
    except ValueError as error:
        raise RequestError(f"--time: {error}") from error
    recovery = None
    if goal.recover is not None:
        recovery = options.validated(RecoverySpec, {"budget": goal.recover})
    if written.picture is not None:
        require_pictures()
    files = (
        outputs.model_file(written.output),
        outputs.figures_file(written.report, "trials", "verdict"),
        outputs.trial_log(written.log),
        outputs.figures_file(written.pareto, "points", "winner"),
        outputs.picture_file(written.picture),
        outputs.page_file(written.html),
    )
    domains, broader = map(options.named_files, (other.domain, other.broader))
    options.check_broader(broader, other.shrinkage, data.calibration)
    read = (model, data.calibration, data.validation, *domains.values(), *broader.values())
    outputs.check_outputs(files, read, force=written.force)
    samples = options.labelled_samples_for(model, data.calibration, data.mask)
    if data.validation is None:
        samples, held_out = hold_out(samples)
    else:
        held_out = options.labelled_samples_for(model, data.validation, data.mask)
    spec = options.validated(
        OptimizeSpec,
        {
            "max_drop": goal.max_drop,
            "objective": goal.objective,
            "integers": goal.integers,
            "seven_bits": goal.seven_bits,
            "batch_invariance": goal.batch_invariance,
            "shrinkage": other.shrinkage,
            "time": time_s,
        },
    )
    further, pulling = (
        {name: options.labelled_samples_for(model, path, data.mask) for name, path in sets.items()}
        for sets in (domains, broader)
    )
    benchmark = BenchmarkSpec(
        provider=timing.provider,
        threads=timing.threads,
        batch=timing.batch or (1,),
        length=timing.length or (128,),
        iterations=timing.iterations,
    )
    settings = options.settings(data.no_cache, batch_size=data.batch_size, backend=data.backend)
    found = optimized(
        learn(model, samples, settings, broader=pulling),
        held_out,
        written.output,
        spec,
        benchmark=benchmark,
        metric=metric_for(model, held_out, goal.outputs),
        log=written.log,
        recovery=recovery,
        domains=further,
    )
    report = found.report
    if written.report is not None or written.html is not None:
        how = SessionSpec(provider=timing.provider, threads=timing.threads)
        depth = depth_profile(model, written.output, found.reporting, how)
        report = report.model_copy(update={"depth": depth})
    print_optimized(report)
    for text in report.notes:
        note(text)
    size = model_size(model, written.output)
    _write(written, report, size, model.name)
    print_size(size)
    out.print(f"written: {written.output}", markup=False, highlight=False)


def _write(written: Written, report: OptimizeReport, size: SizeReport, name: str) -> None:
    """Everything that was asked for beside the model."""
    if written.report is not None:
        write_text(written.report, report.model_dump_json(indent=2))
    if written.pareto is not None:
        write_text(written.pareto, pareto_json(report))
    if written.picture is not None:
        draw_front(report, written.picture)
    if written.html is not None:
        write_html(written.html, optimize_page(report, size, environment(), name, command_line()))
