"""Sentences with their translations, by target language: what translation recipes read.

``limit`` keeps a random subset, the same for the same seed, with as many sentences of each
language, so that a mean over languages rests on all of them alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from compress_onnx.graph_passes.errors import DataError, RequestError
from compress_onnx.pipeline.data import hub
from compress_onnx.pipeline.data.catalogues import Message
from compress_onnx.pipeline.data.translations import translations
from compress_onnx.pipeline.recipe import DataSpec, ParallelData, TranslationData


def load_pairs(spec: DataSpec, *, base_dir: Path, seed: int) -> list[Message]:
    """The pairs that ``spec`` describes, ordered by language.

    Args:
        spec: the recipe's ``calibration`` or ``validation``.
        base_dir: the recipe's folder, which relative paths start from.
        seed: chooses the sentences where ``spec.limit`` is less than there are.

    Raises:
        RequestError: this kind of data has no translations.
        DataError: the data is missing or damaged, or lacks a language.
        MissingDependencyError: an optional library is needed and not installed.
    """
    if isinstance(spec, TranslationData):
        return _messages(spec, base_dir, seed)
    if isinstance(spec, ParallelData):
        return [
            pair for language in spec.languages for pair in _rows(spec, language, base_dir, seed)
        ]
    raise RequestError(f"data of the kind {spec.kind} has no translations: use gettext or parallel")


def origin_of(spec: DataSpec, pairs: Sequence[Message]) -> str:
    """Where ``pairs`` come from, in words."""
    name = Path(spec.path).name if isinstance(spec, ParallelData) else "gettext catalogues"
    split = getattr(spec, "split", "all")
    languages = ", ".join(dict.fromkeys(pair.language for pair in pairs))
    return f"{len(pairs)} pairs of {name}, {split} split, into {languages}"


def _messages(spec: TranslationData, base_dir: Path, seed: int) -> list[Message]:
    pairs = translations(base_dir / spec.packages, spec.languages, spec.split)
    by_language = [[p for p in pairs if p.language == language] for language in spec.languages]
    return [own[row] for own in by_language for row in _chosen(len(own), spec, seed)]


def _rows(spec: ParallelData, language: str, base_dir: Path, seed: int) -> list[Message]:
    table = hub.load_table(spec.path, spec.languages[language], spec.split, base_dir=base_dir)
    chosen = table.select(_chosen(len(table), spec, seed))
    columns = hub.translation_columns(chosen, spec.column, spec.source, language)
    pairs = [Message(language, s.strip(), t.strip()) for s, t in zip(*columns, strict=True)]
    if not pairs:
        raise DataError(f"the data set {spec.path} has nothing in {language!r}: name another split")
    return pairs


def _chosen(count: int, spec: TranslationData | ParallelData, seed: int) -> list[int]:
    """Which of ``count`` pairs of one language to keep, ascending."""
    each = count if spec.limit is None else -(-spec.limit // len(spec.languages))
    if each >= count:
        return list(range(count))
    rows = np.random.default_rng(seed).choice(count, size=each, replace=False)
    return [int(row) for row in np.sort(rows)]
