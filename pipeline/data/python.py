"""Data that a function in Python code returns.

The function gets the recipe's ``arguments``, checked against its annotations, and returns one of

* texts: a list of ``str``, or these with one label each, as ``(texts, labels)``;
* sentences with their translations: a list of :class:`~pipeline.data.pairs.SentencePair`;
* model inputs: arrays ``[samples, ...]`` by input name, or these with labels ``[samples, ...]``,
  as ``(inputs, labels)``.

It runs only with permission (:mod:`pipeline.files.python_code`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError, validate_call

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import DataError, RequestError
from compress_onnx.graph_passes.validation_text import first_problem
from compress_onnx.pipeline.data.pairs import SentencePair
from compress_onnx.pipeline.files.python_code import imported, locate
from compress_onnx.pipeline.recipe import PythonData


@dataclass(frozen=True, eq=False)
class Arrays:
    """Model inputs ``[samples, ...]`` by name, with labels ``[samples, ...]`` where there are."""

    inputs: dict[str, Array]
    labels: Array | None = None


@dataclass(frozen=True, eq=False)
class LabelledTexts:
    """Texts with labels ``[texts, ...]``."""

    texts: list[str]
    labels: Array


Loaded = list[str] | LabelledTexts | list[SentencePair] | Arrays


def call_loader(spec: PythonData, *, base_dir: Path, allow_code: bool) -> Loaded:
    """Run the function that ``spec`` names.

    Args:
        spec: the function and its arguments.
        base_dir: the recipe's folder, where the function's file or module is.
        allow_code: whether it may run.

    Raises:
        RequestError: it may not run, is not there, or takes other arguments.
        DataError: it returns nothing, or something else than described above.
    """
    with imported(locate(spec.loader, base_dir), allow_code=allow_code) as function:
        try:
            found = validate_call(function)(**spec.arguments)
        except ValidationError as error:
            raise RequestError(f"{spec.loader}: {first_problem(error)}") from error
    return _checked(found, spec.loader)


def described(spec: PythonData) -> str:
    """What ``spec`` calls, in words."""
    arguments = ", ".join(f"{name}={value}" for name, value in spec.arguments.items())
    return f"{spec.loader}({arguments})"


def _checked(found: object, loader: str) -> Loaded:
    if isinstance(found, Mapping) and _are_arrays(found):
        return Arrays(dict(found))
    if isinstance(found, list | tuple):
        if not found:
            raise DataError(f"{loader} returned no data")
        first, *others = found
        if isinstance(first, Mapping) and _are_arrays(first) and len(others) == 1:
            return Arrays(dict(first), np.asarray(others[0]))
        if isinstance(first, list | tuple) and len(others) == 1 and _are_texts(first):
            return _labelled(list(first), np.asarray(others[0]), loader)
        for kind in (str, SentencePair):
            if all(isinstance(part, kind) for part in found):
                return list(found)
    raise DataError(
        f"{loader} must return a list of texts, a list of SentencePair, or arrays by input name "
        f"(texts or arrays with labels: a pair of both), not {_kind(found)}"
    )


def _labelled(texts: list[str], labels: Array, loader: str) -> LabelledTexts:
    if labels.ndim == 0 or len(labels) != len(texts):
        raise DataError(
            f"{loader} returned {len(texts)} texts with labels {list(labels.shape)}: give each "
            "text its label"
        )
    return LabelledTexts(texts, labels)


def _are_texts(parts: Collection[object]) -> bool:
    return bool(parts) and all(isinstance(part, str) for part in parts)


def _are_arrays(inputs: Mapping[object, object]) -> bool:
    return bool(inputs) and all(
        isinstance(name, str) and isinstance(array, np.ndarray) for name, array in inputs.items()
    )


def _kind(value: object) -> str:
    if isinstance(value, list | tuple):
        kinds = dict.fromkeys(type(part).__name__ for part in value)
        return f"a {type(value).__name__} of {', '.join(kinds)}"
    return type(value).__name__
