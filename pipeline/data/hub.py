"""Data sets of the Hugging Face hub, or local folders of csv, json or parquet files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import DataError, MissingDependencyError
from compress_onnx.pipeline.runtime.session import one_line

if TYPE_CHECKING:
    from datasets import Column, Dataset
    from PIL.Image import Image


def load_table(
    path: str, name: str | None, split: str, *, base_dir: Path, files: str | None = None
) -> Dataset:
    """Load one split of a data set.

    Args:
        path: a folder (relative to ``base_dir``) where there is one, else a name on the hub.
        name: the configuration, for data sets that have several; in a folder, the sub-folder of
            that name where there is one.
        split: which split, or part of one (``validation[:10%]``); a folder's files are ``train``
            unless their names say otherwise, and files of ``dev`` are ``validation`` too.
        base_dir: the recipe's folder.
        files: a pattern of the split's files; without, the files of all splits are fetched.

    Raises:
        DataError: the data set, configuration or split does not exist or cannot be reached.
        MissingDependencyError: the library is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            'hub data sets need the datasets library: pip install "compress-onnx[export]"'
        ) from error
    folder = base_dir / path
    if name is not None and (folder / name).is_dir():
        folder, name = folder / name, None
    called = split
    if folder.is_dir() and name is None and files is None:
        called = re.sub(r"^dev\b", "validation", split)  # the library's name for such files
    data_files = None if files is None else {split.partition("[")[0]: files}
    try:
        return datasets.load_dataset(
            str(folder) if folder.is_dir() else path, name, split=called, data_files=data_files
        )
    except Exception as error:  # hub, HTTP, Arrow and parser errors share no base class
        raise DataError(
            f"cannot load split {split!r} of data set {path!r} "
            f"(no such folder, or the hub cannot be reached): {one_line(error)}"
        ) from error


def text_column(table: Dataset, column: str) -> list[str]:
    """A column of texts.

    Raises:
        DataError: no such column, or something in it is not text.
    """
    texts = list(_column(table, column))
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"column {column!r} is not all text: name a column of strings")
    return texts


def image_column(table: Dataset, column: str) -> list[Image]:
    """A column of PIL images.

    Raises:
        DataError: no such column, or something in it is not an image.
    """
    images = list(_column(table, column))
    if not all(hasattr(image, "convert") for image in images):
        raise DataError(f"column {column!r} is not all images: name a column of images")
    return images


def label_column(table: Dataset, column: str) -> Array:
    """A column of class numbers, int64 ``[samples]``.

    Raises:
        DataError: no such column, or something in it is not a whole number.
    """
    labels = np.asarray(list(_column(table, column)))
    if labels.ndim != 1 or labels.dtype.kind not in "iub":
        raise DataError(f"column {column!r} holds no class numbers: labels must be whole numbers")
    return labels.astype(np.int64)


def sentence_column(table: Dataset, column: str, language: str) -> list[str]:
    """The sentences of a parallel data set in one language.

    Args:
        table: each row of ``column`` maps languages to sentences, or each language has a column.
        column: its name; with ``{language}`` in it, that of each language's column.
        language: which.

    Raises:
        DataError: no such column, or it lacks the language.
    """
    if "{language}" in column:
        return text_column(table, column.replace("{language}", language))
    rows = list(_column(table, column))
    if not all(isinstance(row, dict) and isinstance(row.get(language), str) for row in rows):
        known = sorted(rows[0]) if rows and isinstance(rows[0], dict) else []
        raise DataError(
            f"column {column!r} has no sentences in {language!r}, only in "
            f"{', '.join(known) or 'no language at all'}"
        )
    return [row[language] for row in rows]


def _column(table: Dataset, column: str) -> Column:
    if column not in table.column_names:
        raise DataError(
            f"the data set has no column {column!r}, only {', '.join(table.column_names)}"
        )
    return table[column]
