"""``compress-onnx export``: an ONNX model from a Hugging Face model or a PyTorch module."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import typer

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.pipeline.cli import options, outputs
from compress_onnx.pipeline.cli.console import ProgressBars, note, out
from compress_onnx.pipeline.cli.help import OneScreen
from compress_onnx.pipeline.export import export as export_source
from compress_onnx.pipeline.files.model_file import load_model, save_model
from compress_onnx.pipeline.recipe import SourceSpec
from compress_onnx.pipeline.report.writer import report_json, write_text


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("export", cls=OneScreen)(export)


def export(
    source: Annotated[
        str,
        typer.Argument(
            help="Hub id, local folder, package:NAME/FOLDER, or MODULE:FACTORY of a torch module."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .onnx file to write.")],
    task: Annotated[str | None, typer.Option(help="For example feature-extraction.")] = None,
    exporter: Annotated[Literal["dynamo", "optimum"], typer.Option(help="Who exports.")] = "dynamo",
    opset: Annotated[int, typer.Option(min=13, help="ONNX opset.")] = 23,
    allow_code: options.AllowCode = False,
    json_path: options.Json = None,
    force: options.Force = False,
) -> None:
    """Export SOURCE to ONNX and compare the graph with PyTorch at two input sizes.

    `compress-onnx export FOLDER --task feature-extraction -o model.onnx`
    """
    spec = options.validated(
        SourceSpec, {"model": source, "task": task, "exporter": exporter, "opset": opset}
    )
    written = [outputs.model_file(output), outputs.figures_file(json_path, "exporter", "parity")]
    outputs.check_outputs(written, _local(source), force=force)
    with TemporaryDirectory(prefix="compress-onnx-") as work:
        with ProgressBars().step("export"):
            exported = export_source(spec, Path(work), base_dir=Path.cwd(), allow_code=allow_code)
        if not exported.path.is_relative_to(work):
            raise RequestError(f"{source} is an ONNX model already: nothing to export")
        save_model(load_model(exported.path), output)
    report = exported.report
    if json_path is not None:
        write_text(json_path, report_json(report))
    out.print(f"{output}: {report.exporter}, opset {report.opset}", markup=False, highlight=False)
    for parity in report.parity:
        for row in parity.outputs:
            out.print(
                f"  {row.output}: relative L2 to PyTorch {row.relative_l2:.2e} "
                f"at {parity.input_shapes}",
                markup=False,
                highlight=False,
            )
    for text in exported.notes:
        note(text)


def _local(source: str) -> list[Path]:
    path = Path(source).expanduser()
    return [path] if path.exists() else []
