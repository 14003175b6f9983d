"""``compress-onnx bundle``: a model in the layout of the place that serves it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compress_onnx.pipeline.cli import options, outputs
from compress_onnx.pipeline.cli.console import note, out
from compress_onnx.pipeline.cli.help import OneScreen
from compress_onnx.pipeline.deploy.package import Serving, read_package
from compress_onnx.pipeline.deploy.targets import TARGETS, loading_lines
from compress_onnx.pipeline.deploy.targets import bundle as bundle_for
from compress_onnx.pipeline.files.signature import require_signature
from compress_onnx.pipeline.report.writer import write_json


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("bundle", cls=OneScreen)(bundle)


def bundle(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="What `run` wrote: model.onnx, tokenizer, report."),
    ],
    target: Annotated[
        list[str],
        typer.Option("--target", "-t", metavar="TARGET", help=f"One of {', '.join(TARGETS)}."),
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="Folder; of several targets, one in it for each."),
    ],
    name: Annotated[
        str | None, typer.Option(help="What servers call the model [default: the report's].")
    ] = None,
    original: Annotated[
        Path | None, typer.Option(help="The uncompressed model, as a version beside it.")
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            help="For the model card: what it was made from, on the hub [default: the report's]."
        ),
    ] = None,
    threads: options.Threads = None,
    instances: Annotated[
        int, typer.Option(min=1, help="Copies of the model that answer at once.")
    ] = 1,
    max_batch: Annotated[int, typer.Option(min=1, help="Most samples in a batch.")] = 32,
    dynamic_batching: Annotated[
        bool | None,
        typer.Option(
            "--dynamic-batching/--no-dynamic-batching",
            help="Put requests together [default: where answers do not depend on it].",
        ),
    ] = None,
    key: options.RequireManifest = None,
    json_path: options.Json = None,
    force: options.Force = False,
) -> None:
    """Lay a model out for the place that serves it, with provenance and a sha256 manifest.

    `compress-onnx bundle bundles/minilm --target triton --original model.onnx -o repository`
    """
    if key is not None:
        require_signature(folder, key)
    serving = Serving(threads, instances, max_batch, dynamic_batching)
    package = read_package(folder, name, original=original, serving=serving, base_model=base_model)
    places = {one: output / one if len(target) > 1 else output for one in dict.fromkeys(target)}
    outputs.check_outputs(
        [
            *(outputs.bundle_output(place) for place in places.values()),
            outputs.figures_file(json_path, "bundles"),
        ],
        [package.model, folder, original],
        force=force,
    )
    told = {}
    for one, place in places.items():
        notes = bundle_for(package, one, place, force=force)
        for text in notes:
            note(f"{one}: {text}")
        out.print(f"{one}: {place}", markup=False, highlight=False)
        lines = loading_lines(package, one, place)
        out.print(lines + "\n", markup=False, highlight=False, soft_wrap=True)
        told[one] = {"folder": str(place), "notes": notes, "loading": lines}
    if json_path is not None:
        write_json(json_path, {"bundles": told})
