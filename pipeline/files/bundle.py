"""The bundle: a folder with everything that belongs together, and a manifest of its contents.

``manifest.json`` lists every other file of the folder but its own signature, with its size and
SHA-256. A bundle is intact when the folder holds exactly those files, unchanged. Only regular files
inside the folder count: a symbolic link or a special file makes a bundle invalid, so that verifying
or copying one never reads anything outside it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compress_onnx.graph_passes.errors import ModelFileError, OutputError
from compress_onnx.graph_passes.validation_text import first_problem
from compress_onnx.pipeline.files.atomic import atomic_file

MANIFEST_NAME = "manifest.json"
SIGNATURE_NAME = "manifest.json.sig"
"""Of the manifest, so not in it (:mod:`pipeline.files.signature`)."""

MANIFEST_SCHEMA_VERSION: Literal[1] = 1


class FileEntry(BaseModel):
    """One file of a bundle."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Manifest(BaseModel):
    """The files of a bundle by their path inside it, with forward slashes, sorted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = MANIFEST_SCHEMA_VERSION
    tool: Literal["compress-onnx"] = "compress-onnx"
    version: str
    files: dict[str, FileEntry]


def write_manifest(folder: Path) -> Manifest:
    """Write ``manifest.json`` over everything else that ``folder`` holds.

    Raises:
        ModelFileError: the folder holds a symbolic link or a special file.
        OutputError: the manifest cannot be written.
    """
    files = {name: _entry(path) for name, path in _files(folder).items()}
    manifest = Manifest(version=version("compress-onnx"), files=files)
    with atomic_file(folder / MANIFEST_NAME) as temporary:
        temporary.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest


def verify_manifest(folder: Path) -> Manifest:
    """Check that ``folder`` holds exactly the files that its manifest lists, unchanged.

    Raises:
        ModelFileError: the manifest is missing or damaged, or a file is missing, extra or changed;
            the message names the first such file.
    """
    manifest = _read_manifest(folder)
    files = _files(folder)
    for name in sorted(manifest.files.keys() | files.keys()):
        problem = _problem(manifest.files.get(name), files.get(name))
        if problem is not None:
            raise ModelFileError(
                f"the bundle {folder} is not intact, {name!r} {problem}: get the bundle again"
            )
    return manifest


def is_bundle(folder: Path) -> bool:
    """True when ``folder`` is a bundle of this tool and holds no files of anybody else's.

    Contents are not compared: a damaged bundle is a bundle, and may be replaced as a whole.
    """
    try:
        return _read_manifest(folder).files.keys() >= _files(folder).keys()
    except ModelFileError:
        return False


def copy_assets(files: Iterable[Path], folder: Path, root: Path | None = None) -> list[Path]:
    """Copy files such as a tokenizer's and a configuration into ``folder``.

    They lie there as they do below ``root``; flat without one.

    Links are followed, so that what arrives is the content.

    Returns:
        The copies, in the order given.

    Raises:
        ModelFileError: a file is missing or not a regular file.
        OutputError: the folder already holds a file of that name, or cannot be written.
    """
    return [
        _copy(file, folder, file.relative_to(root) if root else Path(file.name)) for file in files
    ]


def _copy(source: Path, folder: Path, inner: Path) -> Path:
    target = folder / inner
    if not source.is_file():
        raise ModelFileError(f"cannot bundle {source}: there is no such file")
    if target.exists():
        raise OutputError(f"cannot bundle {source}: the bundle already has a file {inner}")
    try:
        for parent in reversed(inner.parents[:-1]):  # not the bundle itself
            (folder / parent).mkdir(exist_ok=True)
        shutil.copyfile(source, target)
    except OSError as error:
        raise OutputError(f"cannot copy {source} to {target}: {error.strerror}") from error
    return target


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_NAME
    if path.is_symlink():
        raise ModelFileError(f"{path} is a symbolic link: a bundle holds regular files only")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ModelFileError(f"cannot read the manifest {path}: {error.strerror}") from error
    except ValidationError as error:
        raise ModelFileError(f"{path} is not a manifest: {first_problem(error)}") from error


def _problem(expected: FileEntry | None, path: Path | None) -> str | None:
    if path is None:
        return "is missing"
    if expected is None:
        return "is not in the manifest"
    return None if _entry(path) == expected else "has changed"


def _entry(path: Path) -> FileEntry:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            return FileEntry(sha256=digest.hexdigest(), bytes=file.tell())
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from error


def _files(folder: Path) -> dict[str, Path]:
    """Every file below ``folder`` but the manifest and its signature, by its path, sorted."""
    found = {path.relative_to(folder).as_posix(): path for path in _walk(folder)}
    found.pop(MANIFEST_NAME, None)
    found.pop(SIGNATURE_NAME, None)
    return dict(sorted(found.items()))


def _walk(folder: Path) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise ModelFileError(f"cannot read the folder {folder}: {error.strerror}") from error
    for entry in entries:
        _check_name(entry)
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            yield from _walk(Path(entry.path))
        elif stat.S_ISREG(mode):
            yield Path(entry.path)
        else:
            raise ModelFileError(
                f"{entry.path} is a link or a special file: a bundle holds regular files only"
            )


def _check_name(entry: os.DirEntry[str]) -> None:
    try:
        entry.name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ModelFileError(f"the name of {entry.path!r} is not UTF-8: rename it") from error
