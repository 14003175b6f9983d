"""What each command writes and reads, for :func:`pipeline.files.outputs.check_outputs`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.pipeline.compress.trial_log import is_trial_log
from compress_onnx.pipeline.files.outputs import (
    Output,
    bundle_output,
    check_outputs,
    folder_output,
    json_output,
    model_output,
)
from compress_onnx.pipeline.recipe import Recipe
from compress_onnx.pipeline.report.analysis.page import REPORT_NAME
from compress_onnx.pipeline.report.ci import is_junit_of_ours, is_table_of_ours
from compress_onnx.pipeline.report.drawing import is_picture_of_ours
from compress_onnx.pipeline.report.model_explorer import is_node_data
from compress_onnx.pipeline.report.page import is_page_of_ours
from compress_onnx.pipeline.report.writer import SWEEP_NAME

__all__ = [
    "analysis_folder",
    "bundle_output",
    "check_outputs",
    "figures_file",
    "junit_file",
    "model_file",
    "node_data_file",
    "page_file",
    "picture_file",
    "recipe_file",
    "recipe_inputs",
    "sweep_folder",
    "table_file",
    "trial_log",
]


def model_file(path: Path | None) -> Output | None:
    """What ``compress`` and ``export`` write."""
    return None if path is None else model_output(path)


def picture_file(path: Path | None) -> Output | None:
    """What ``optimize --picture`` draws.

    Raises:
        RequestError: the name ends in nothing that can be drawn.
    """
    if path is None:
        return None
    if path.suffix not in {".png", ".svg"}:
        raise RequestError(f"{path}: a picture is a .png or .svg file")
    return Output(path, "file", is_picture_of_ours)


def trial_log(path: Path | None) -> Output | None:
    """What ``optimize --log`` adds to."""
    return None if path is None else Output(path, "file", is_trial_log)


def figures_file(path: Path | None, *keys: str) -> Output | None:
    """A JSON file of figures, known by ``keys`` that it has."""
    return None if path is None else json_output(path, *keys)


def page_file(path: Path | None) -> Output | None:
    """What ``--html`` writes."""
    return None if path is None else Output(path, "file", is_page_of_ours)


def junit_file(path: Path | None) -> Output | None:
    """What ``--junit`` writes."""
    return None if path is None else Output(path, "file", is_junit_of_ours)


def table_file(path: Path | None) -> Output | None:
    """What ``compare --markdown`` writes."""
    return None if path is None else Output(path, "file", is_table_of_ours)


def node_data_file(path: Path | None) -> Output | None:
    """What ``report --model-explorer`` writes."""
    return None if path is None else Output(path, "file", is_node_data)


def analysis_folder(path: Path | None) -> Output | None:
    """What ``analyze -o`` writes."""
    return None if path is None else folder_output(path, REPORT_NAME, "tool_version", "sites")


def sweep_folder(path: Path | None) -> Output | None:
    """What ``sweep -o`` writes."""
    return None if path is None else folder_output(path, SWEEP_NAME, "tool_version", "rows")


def recipe_file(path: Path) -> Output:
    """What ``init`` writes; whatever is there may have been edited, and is somebody's."""
    return Output(path, "file", lambda _: False)


def recipe_inputs(path: Path, recipe: Recipe) -> list[Path]:
    """The recipe in the file ``path``, and the local files and folders that it names."""
    names = [recipe.source.model, *_paths(recipe.model_dump())]
    found = [path.parent / Path(name).expanduser() for name in names]
    return [path, *(file for file in found if file.exists())]


def _paths(values: object) -> Iterator[str | Path]:
    """What the keys ``path`` and ``packages`` say at any depth: the files that data comes from."""
    if isinstance(values, dict):
        for key, value in values.items():
            if key in {"path", "packages"} and isinstance(value, str | Path):
                yield value
            else:
                yield from _paths(value)
