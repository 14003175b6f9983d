"""What a command may replace, decided before it does anything.

Rules:

1. An output is never an input, by whatever path, hard or symbolic link. A model's inputs are its
   external data files too; where an input is a folder, so is every file in it.
2. Two outputs are never one file, and none is inside a bundle that is replaced as a whole.
3. A bundle that is replaced as a whole holds no input.
4. What exists is replaced if this tool wrote it: a model with its mark, JSON with the keys of its
   own, a folder that is a bundle or holds the JSON that belongs to it. Anything else is replaced
   only by force. An empty file or folder is nobody's.
5. A device, a pipe, or a folder in the place of a file is no output, by force or not.

Force does not lift rules 1 to 3. The cache is no output: nobody named it, and it is always safe to
lose.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

from compress_onnx.graph_passes.errors import ModelFileError, OutputError
from compress_onnx.pipeline.files.atomic import irregular
from compress_onnx.pipeline.files.bundle import is_bundle
from compress_onnx.pipeline.files.model_file import referred_files, was_written_here


@dataclass(frozen=True)
class Output:
    """A file or a folder that a command is about to write.

    Attributes:
        path: where.
        kind: a file; a folder that some files are written into; a bundle, a folder that is replaced
            as a whole.
        is_ours: whether this tool wrote what exists there.
    """

    path: Path
    kind: Literal["file", "folder", "bundle"]
    is_ours: Callable[[Path], bool]


def model_output(path: Path) -> Output:
    """An ``.onnx`` file."""
    return Output(path, "file", was_written_here)


def json_output(path: Path, *keys: str) -> Output:
    """A JSON file of an object, or of a list of objects, with ``keys`` (and perhaps others)."""
    return Output(path, "file", lambda existing: _has_keys(existing, keys))


def folder_output(path: Path, json_name: str, *keys: str) -> Output:
    """A folder for several files, among them ``json_name`` with ``keys``."""
    return Output(path, "folder", lambda existing: _has_keys(existing / json_name, keys))


def bundle_output(path: Path) -> Output:
    """A folder that becomes a bundle."""
    return Output(path, "bundle", is_bundle)


def check_outputs(
    outputs: Iterable[Output | None], inputs: Iterable[Path | None], *, force: bool = False
) -> None:
    """Hold the rules against what a command will write and read; only looks at the file system.

    Args:
        outputs: None stands for one that was not asked for.
        inputs: files and folders; None stands for one that was not given.
        force: replace what somebody else wrote.

    Raises:
        OutputError: an output breaks a rule.
    """
    wanted = [output for output in outputs if output is not None]
    read = [file for path in inputs if path is not None for file in _files_of(path)]
    for output in wanted:
        for path in read:
            _refuse_input(output, path)
    for one, other in combinations(wanted, 2):
        if _is_same(one.path, other.path) or _is_in(one, other) or _is_in(other, one):
            raise OutputError(
                f"{one.path} and {other.path} are to be written to one place: choose two"
            )
    for output in wanted:
        _check_kind(output)
        if not force and not _is_free(output.path) and not output.is_ours(output.path):
            raise OutputError(
                f"{output.path} exists and was not written by compress-onnx: choose another "
                "output, or replace it with --force"
            )


def _files_of(path: Path) -> Iterator[Path]:
    """``path``, and the data files of the model that it may be."""
    yield path
    if path.suffix == ".onnx":
        try:
            yield from referred_files(path)
        except ModelFileError:
            return  # whoever reads the model says what is wrong with it


def _refuse_input(output: Output, path: Path) -> None:
    if _is_same(output.path, path):
        raise OutputError(
            f"{output.path} is an input, which is never changed: choose another output"
        )
    if path.is_dir() and output.path.is_file() and _real(output.path).is_relative_to(_real(path)):
        raise OutputError(f"{output.path} is in the input {path}: choose an output elsewhere")
    if output.kind == "bundle" and _real(path).is_relative_to(_real(output.path)):
        raise OutputError(
            f"{output.path} would be replaced as a whole, and holds the input {path}: choose "
            "another output"
        )


def _check_kind(output: Output) -> None:
    path = output.path
    if output.kind == "file" and irregular(path):
        raise OutputError(f"cannot write {path}: it exists and is not a regular file")
    if output.kind != "file" and path.exists() and not path.is_dir():
        raise OutputError(f"cannot write the folder {path}: a file of that name exists")


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file, also where nothing is there yet."""
    try:
        return os.path.samefile(one, other)  # noqa: PTH121  # of two paths, neither comes first
    except OSError:  # at least one does not exist
        return _real(one) == _real(other)


def _is_in(inner: Output, outer: Output) -> bool:
    return outer.kind == "bundle" and _real(inner.path).is_relative_to(_real(outer.path))


def _is_free(path: Path) -> bool:
    if not path.exists():
        return True
    return not any(path.iterdir()) if path.is_dir() else path.stat().st_size == 0


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _has_keys(path: Path, keys: Sequence[str]) -> bool:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    first = content[0] if isinstance(content, list) and content else content
    return isinstance(first, dict) and set(keys) <= first.keys()
