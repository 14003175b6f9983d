"""A cache of named arrays on disk, keyed by the content that they were computed from.

Entries are ``.npz`` files without pickled objects, written atomically, each array guarded by the
archive's checksum. A damaged entry is noticed, reported, and treated as absent. Beside them may be
logs, ``.jsonl`` files that grow line by line.

The access time of a file is when its entry was last used, set here because file systems are often
told not to. After each write the entries that were used least recently go, until all take at most
``COMPRESS_ONNX_CACHE_LIMIT`` (bytes, or ``500MB``; 2 GB by default). What a killed writer left
counts like an entry after an hour, so that it goes as well.

Checkpoints of what is under way are large and change all the time: they have a folder inside, with
a limit of its own of the same size, so that they never evict what was learned.

Several processes may use one cache: an entry appears and goes in one step of the file system, and
one that goes while it is wanted is absent. ``COMPRESS_ONNX_CACHE`` moves the cache; deleting it is
always safe. Files of other names in its folder are nobody's business.

(The package diskcache is no help: it unpickles what it finds, CVE-2025-69872, and evicts ten
entries at a time, where ten of these may be all.)
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import platformdirs
from pydantic import ByteSize, TypeAdapter, ValidationError

from compress_onnx.graph_passes.arrays import Array, Stored
from compress_onnx.graph_passes.errors import OutputError, RequestError
from compress_onnx.pipeline.files.archive import ARCHIVE_ERRORS, open_archive
from compress_onnx.pipeline.files.atomic import atomic_file
from compress_onnx.pipeline.files.shelf import Shelf

logger = logging.getLogger(__name__)

_FOLDER_VARIABLE, _LIMIT_VARIABLE = "COMPRESS_ONNX_CACHE", "COMPRESS_ONNX_CACHE_LIMIT"
_DEFAULT_LIMIT_BYTES = 2_000_000_000
_CHECKPOINTS = "checkpoints"
_SHELVED_FROM_BYTES = 100_000_000
"""What entries of so many bytes hold is not taken into memory."""
_WRITER_IS_DEAD_AFTER_S = 3600
# A key of content_key, or the hidden name of its writer's temporary file.
_ENTRY = re.compile(r"[0-9a-f]{64}\.(npz|jsonl?)|\.[0-9a-f]{64}\.[\w-]+\.tmp\.(npz|json)")


def default_folder() -> Path:
    """``COMPRESS_ONNX_CACHE``, or the user's cache folder."""
    override = os.environ.get(_FOLDER_VARIABLE)
    return Path(override) if override else Path(platformdirs.user_cache_dir("compress-onnx"))


def default_limit() -> int:
    """``COMPRESS_ONNX_CACHE_LIMIT`` in bytes, or 2 GB.

    Raises:
        RequestError: it is no size.
    """
    text = os.environ.get(_LIMIT_VARIABLE) or _DEFAULT_LIMIT_BYTES
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError as error:
        raise RequestError(
            f"{_LIMIT_VARIABLE} is {text!r}, which is no size: write 500MB, 2GB or bytes"
        ) from error


class CacheInfo(NamedTuple):
    """What a cache holds, checkpoints included; the limit is that of each of both."""

    folder: Path
    entries: int
    size_bytes: int
    limit_bytes: int


class ArrayCache:
    """Arrays by key; a cache that cannot be written only costs time.

    Args:
        folder: created when something is written.
        limit_bytes: of all entries together; None for :func:`default_limit`.
    """

    def __init__(self, folder: Path, limit_bytes: int | None = None) -> None:
        self._folder = folder
        self._limit = default_limit() if limit_bytes is None else limit_bytes

    @property
    def checkpoints(self) -> ArrayCache:
        """Another one inside it, for what is under way."""
        return ArrayCache(self._folder / _CHECKPOINTS, self._limit)

    def get(self, key: str) -> dict[str, Stored] | None:
        """The arrays under ``key``; None where there are none or they are damaged.

        The arrays of a large entry are on a shelf.
        """
        path = self._path(key)
        try:
            with open_archive(path) as archive:
                shelf = Shelf() if path.stat().st_size >= _SHELVED_FROM_BYTES else None
                arrays = {
                    name: archive[name] if shelf is None else shelf.keep(archive[name])
                    for name in archive.files
                }
        except FileNotFoundError:
            return None
        except ARCHIVE_ERRORS as error:
            logger.warning("the cache entry %s is damaged and is rebuilt (%s)", path, error)
            return None
        _touch(path)
        return arrays

    def put(self, key: str, arrays: Mapping[str, Stored]) -> None:
        """Store ``arrays`` under ``key``; the least recently used make room for them."""
        size = sum(array.nbytes for array in arrays.values())
        if size > self._limit:
            logger.warning(
                "nothing is cached: %d bytes are more than the limit of %d (%s)",
                size,
                self._limit,
                _LIMIT_VARIABLE,
            )
            return
        try:
            with atomic_file(self._path(key)) as temporary, temporary.open("wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]  # the stub wants bool for a keyword
        except OutputError as error:
            logger.warning("nothing is cached: %s", error)
        else:
            self._evict()

    def log(self, key: str) -> Path:
        """The file of lines under ``key``, for whoever adds to it; it need not be there yet.

        Raises:
            OutputError: the folder cannot be made.
        """
        path = self._folder / f"{key}.jsonl"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write {self._folder}: {error.strerror}") from error
        _touch(path)
        return path

    def remove(self, key: str) -> None:
        """Forget what is under ``key``, if anything is."""
        _remove(self._path(key))

    def clear(self) -> None:
        """Forget everything, checkpoints included."""
        for path in self._all():
            _remove(path)

    def info(self) -> CacheInfo:
        """What there is."""
        entries = self._all()
        return CacheInfo(self._folder, len(entries), sum(entries.values()), self._limit)

    def _all(self) -> dict[Path, int]:
        return {**self._entries(), **self.checkpoints._entries()}

    def _evict(self) -> None:
        entries = self._entries()
        for path, total in zip(entries, accumulate(entries.values()), strict=True):
            if total > self._limit:
                _remove(path)

    def _entries(self) -> dict[Path, int]:
        """The size of each file of the cache, the most recently used first."""
        found: list[tuple[int, Path, int]] = []
        with suppress(FileNotFoundError, NotADirectoryError):  # nothing was ever written
            for path in self._folder.iterdir():
                if _ENTRY.fullmatch(path.name):
                    with suppress(FileNotFoundError):  # another process evicts as well
                        status = path.stat()
                        if not _is_being_written(path, status):
                            found.append((status.st_atime_ns, path, status.st_size))
        return {path: size for _, path, size in sorted(found, reverse=True)}

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.npz"


def _touch(path: Path) -> None:
    """Say that the entry was used."""
    with suppress(OSError):  # there is none, or the folder may only be read
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def _is_being_written(path: Path, status: os.stat_result) -> bool:
    return path.name.startswith(".") and time.time() - status.st_mtime < _WRITER_IS_DEAD_AFTER_S


def _remove(path: Path) -> None:
    with suppress(OSError):  # gone by now, or another user's
        path.unlink()


def content_key(*parts: str | Mapping[str, Array]) -> str:
    """A key for what was computed from ``parts``: texts, and arrays by name."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(f"text {len(part)} {part}".encode())
            continue
        for name in sorted(part):
            array = np.ascontiguousarray(part[name])
            digest.update(f"array {name!r} {array.dtype.str} {array.shape}".encode())
            digest.update(array.data)
    return digest.hexdigest()
