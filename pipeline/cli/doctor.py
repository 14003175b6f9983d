"""``compress-onnx doctor``: what works on this machine, and what to install for the rest."""

from __future__ import annotations

import typer

from compress_onnx.pipeline.cli import outputs
from compress_onnx.pipeline.cli.console import out
from compress_onnx.pipeline.cli.help import OneScreen
from compress_onnx.pipeline.cli.options import Json
from compress_onnx.pipeline.files.cache import ArrayCache, default_folder
from compress_onnx.pipeline.report import formats
from compress_onnx.pipeline.report.writer import report_json, write_text
from compress_onnx.pipeline.runtime.diagnosis import diagnosis


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("doctor", cls=OneScreen)(doctor)


def doctor(json_path: Json = None) -> None:
    """Tell versions, providers, instruction sets, extras and the cache; change nothing.

    A provider works where a session of it was opened. Exit code 1 where none does.
    """
    figures = outputs.figures_file(json_path, "providers", "extras")
    outputs.check_outputs([figures], [], force=False)
    found = diagnosis()
    machine = found.environment
    _line("compress-onnx", found.tool_version)
    _line("Python", f"{machine.python}, {machine.platform}")
    _line("processor", f"{machine.processor}, {machine.cores} cores")
    _line("instructions", ", ".join(machine.instruction_sets) or "not known")
    exact = "exact" if found.exact_int8 else "7 bits only: no VNNI, so 8 bits can overflow"
    _line("int8 products", exact)
    for package, version in machine.packages.items():
        _line(f"  {package}", version)
    for provider, problem in found.providers.items():
        _line(f"provider {provider}", "works" if problem is None else problem)
    for extra, state in found.extras.items():
        told = "installed"
        if state.missing:
            told = f'missing: {", ".join(state.missing)} (pip install "compress-onnx[{extra}]")'
        _line(f"extra {extra}", told)
    cache = ArrayCache(default_folder()).info()
    size, limit = formats.size(cache.size_bytes), formats.size(cache.limit_bytes)
    _line("cache", f"{cache.folder}: {size} of {limit}")
    if json_path is not None:
        write_text(json_path, report_json(found))
    if all(problem is not None for problem in found.providers.values()):
        raise typer.Exit(1)


def _line(name: str, value: str) -> None:
    out.print(f"{name:20}{value}", markup=False, highlight=False, soft_wrap=True)
