"""What reading a damaged ``.npz`` archive can raise."""

from __future__ import annotations

import lzma
import struct
import tokenize
import zipfile
import zlib

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
