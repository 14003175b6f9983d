"""A cache of named arrays on disk, keyed by the content that they were computed from.

Entries are ``.npz`` files without pickled objects, written atomically, each array guarded by the
archive's checksum. A damaged entry is noticed, reported, and treated as absent. Set
``COMPRESS_ONNX_CACHE`` to move the cache; deleting the folder is always safe.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import platformdirs

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import OutputError
from compress_onnx.pipeline.data.npz import ARCHIVE_ERRORS
from compress_onnx.pipeline.files.atomic import atomic_file

logger = logging.getLogger(__name__)


def default_folder() -> Path:
    """``COMPRESS_ONNX_CACHE``, or the user's cache folder."""
    override = os.environ.get("COMPRESS_ONNX_CACHE")
    return Path(override) if override else Path(platformdirs.user_cache_dir("compress-onnx"))


class ArrayCache:
    """Arrays by key; a cache that cannot be written only costs time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str) -> dict[str, Array] | None:
        """The arrays under ``key``; None where there are none or they are damaged."""
        path = self._path(key)
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except ARCHIVE_ERRORS as error:
            logger.warning("the cache entry %s is damaged and is rebuilt (%s)", path, error)
            return None

    def put(self, key: str, arrays: Mapping[str, Array]) -> None:
        """Store ``arrays`` under ``key``."""
        try:
            with atomic_file(self._path(key)) as temporary, temporary.open("wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]  # the stub wants bool for a keyword
        except OutputError as error:
            logger.warning("nothing is cached: %s", error)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.npz"


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
