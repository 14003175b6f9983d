"""Arrays that wait in a file until somebody reads them.

What is known about a model that is larger than memory takes as much as the model itself. On a shelf
it takes none: each reading makes an array anew, as reading a matrix at rest does anyway.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from tempfile import TemporaryFile, gettempdir
from typing import IO

import numpy as np
from numpy.typing import DTypeLike

from compress_onnx.graph_passes.arrays import Array, Stored
from compress_onnx.graph_passes.errors import OutputError

_SMALL_BYTES = 4096
"""Less is not worth a place on a shelf."""


class Shelf:
    """One file without a name, whose space is free again once no array on it is referred to."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._lock = threading.Lock()

    def put(self, array: Array) -> Shelved:
        """Write ``array`` to the file.

        Raises:
            OutputError: the folder for temporary files cannot be written, or has no space left.
        """
        array = np.asarray(array, order="C")
        with self._lock:
            try:
                if self._file is None:
                    self._file = TemporaryFile(prefix="compress-onnx-")  # noqa: SIM115  # stays open
                offset = self._file.seek(0, os.SEEK_END)
                self._file.write(array.data)
                self._file.flush()
            except OSError as error:
                raise OutputError(
                    f"cannot write statistics to {gettempdir()}: {error.strerror}: set TMPDIR to a "
                    "folder with more space"
                ) from error
        return Shelved(self, offset, array.dtype, array.shape)

    def keep(self, array: Array) -> Stored:
        """``array`` as :meth:`put` has it, or itself where it is small.

        Raises:
            OutputError: as for :meth:`put`.
        """
        return array if array.nbytes < _SMALL_BYTES else self.put(array)

    def read(self, offset: int, array: Array) -> None:
        """Fill ``array`` with what is at ``offset``."""
        assert self._file is not None
        with self._lock:
            self._file.seek(offset)
            self._file.readinto(array.data)  # type: ignore[attr-defined]  # a BufferedRandom has it


@dataclass(frozen=True, eq=False)
class Shelved:
    """An array on a shelf; :func:`numpy.asarray` reads it."""

    shelf: Shelf
    offset: int
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Of the array."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __array__(self, dtype: DTypeLike | None = None, *, copy: bool | None = None) -> Array:
        """The array, read anew: numpy's protocol."""
        if copy is False:
            raise ValueError("an array on a shelf is read anew each time")
        array: Array = np.empty(self.shape, self.dtype)
        self.shelf.read(self.offset, array)
        return array if dtype is None else array.astype(dtype, copy=False)

    def __reduce__(self) -> tuple[object, ...]:
        """Elsewhere there is no such file."""
        return np.asarray, (np.asarray(self),)
