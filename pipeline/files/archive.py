"""Opening ``.npz`` archives that may be damaged, and what reading them can raise."""

from __future__ import annotations

import lzma
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

ARCHIVE_ERRORS = (
    OSError,
    ValueError,  # numpy: pickled objects, a damaged header
    EOFError,
    MemoryError,
    KeyError,  # zipfile: the directory names a member that is not there
    RuntimeError,  # zipfile: encrypted, or (NotImplementedError) an unknown compression
    SyntaxError,  # numpy: a header that is not a literal
    tokenize.TokenError,  # numpy: one that ends in the middle
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
"""What ``zipfile`` and ``numpy.load`` raise on archives that are damaged or no archives."""


def open_archive(path: Path) -> NpzFile:
    """The archive ``path``, without pickle.

    ``numpy.load`` goes by the first bytes, ``zipfile`` by the last: what begins as a single array
    may end as an archive.

    Raises:
        OSError: it cannot be read.
        Exception: others of :data:`ARCHIVE_ERRORS`; it is damaged, or no archive.
    """
    opened = np.load(path, allow_pickle=False)
    if not isinstance(opened, NpzFile):
        raise zipfile.BadZipFile("it begins as a single array, not as an archive")
    return opened
