"""Sentences with their translations, by language: what translation recipes read.

One language is on one side of all pairs, the source's or the target's; the other side is in the
languages that pairs are ordered by and counted by.

``limit`` keeps a random subset, the same for the same seed, with as many sentences of each
language, so that a mean over languages rests on all of them alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from compress_onnx.graph_passes.errors import DataError, RequestError
from compress_onnx.pipeline.data import hub
from compress_onnx.pipeline.data.pairs import SentencePair
from compress_onnx.pipeline.data.python import call_loader, described
from compress_onnx.pipeline.recipe import DataSpec, ParallelData, PythonData


def load_pairs(
    spec: DataSpec, *, base_dir: Path, seed: int, allow_code: bool = False
) -> list[SentencePair]:
    """The pairs that ``spec`` describes, ordered by language.

    Args:
        spec: the recipe's ``calibration`` or ``validation``.
        base_dir: the recipe's folder, which relative paths start from.
        seed: chooses the sentences where ``spec.limit`` is less than there are.
        allow_code: whether Python code that ``spec`` names may run.

    Raises:
        RequestError: this kind of data has no translations, or names code that may not run.
        DataError: the data is missing or damaged, or lacks a language.
        MissingDependencyError: an optional library is needed and not installed.
    """
    if isinstance(spec, PythonData):
        return _returned(spec, base_dir, seed, allow_code)
    if isinstance(spec, ParallelData):
        return [
            pair for language in spec.languages for pair in _rows(spec, language, base_dir, seed)
        ]
    raise RequestError(
        f"data of the kind {spec.kind} has no translations: use parallel, or python with a "
        "function that returns sentence pairs"
    )


def origin_of(spec: DataSpec, pairs: Sequence[SentencePair]) -> str:
    """Where ``pairs`` come from, in words."""
    if isinstance(spec, PythonData):
        name = described(spec)
    else:
        assert isinstance(spec, ParallelData)  # see load_pairs
        name = f"{Path(spec.path).name}, {spec.split} split"
    languages = ", ".join(dict.fromkeys(pair.language for pair in pairs))
    targets = ", ".join(dict.fromkeys(pair.into for pair in pairs if pair.into is not None))
    direction = f"from {languages} into {targets}" if targets else f"into {languages}"
    return f"{len(pairs)} pairs of {name}, {direction}"


def _returned(spec: PythonData, base_dir: Path, seed: int, allow_code: bool) -> list[SentencePair]:
    found = call_loader(spec, base_dir=base_dir, allow_code=allow_code)
    by_language: dict[str, list[SentencePair]] = {}
    for pair in found if isinstance(found, list) else ():
        if isinstance(pair, SentencePair):
            by_language.setdefault(pair.language, []).append(pair)
    if not by_language:
        raise RequestError(f"{spec.loader} returns no translations: this recipe needs SentencePair")
    each = _each(spec.limit, len(by_language))
    return [own[row] for own in by_language.values() for row in _chosen(len(own), each, seed)]


def _rows(spec: ParallelData, language: str, base_dir: Path, seed: int) -> list[SentencePair]:
    table = hub.load_table(spec.path, spec.languages[language], spec.split, base_dir=base_dir)
    each = _each(spec.limit, len(spec.languages))
    chosen = table.select(_chosen(len(table), each, seed))
    sides = (spec.source, language) if spec.target is None else (language, spec.target)
    columns = [hub.sentence_column(chosen, spec.column, side) for side in sides]
    pairs = [
        SentencePair(language, source.strip(), target.strip(), spec.target)
        for source, target in zip(*columns, strict=True)
    ]
    if not pairs:
        raise DataError(f"the data set {spec.path} has nothing in {language!r}: name another split")
    return pairs


def _each(limit: int | None, languages: int) -> int | None:
    """How many pairs of each language to keep; None for all."""
    return None if limit is None else -(-limit // languages)


def _chosen(count: int, limit: int | None, seed: int) -> list[int]:
    """Which of ``count`` pairs of one language to keep, ascending."""
    if limit is None or limit >= count:
        return list(range(count))
    rows = np.random.default_rng(seed).choice(count, size=limit, replace=False)
    return [int(row) for row in np.sort(rows)]
