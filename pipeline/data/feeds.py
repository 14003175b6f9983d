"""Data as Python code has it: samples, a file, arrays by input, or feeds one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.data.npz import load_npz
from compress_onnx.pipeline.runtime.inputs import ModelInput, constants_among
from compress_onnx.pipeline.runtime.samples import Samples

DataLike = Samples | Path | str | Mapping[str, Any] | Iterable[Mapping[str, Any]]
"""Samples; an ``.npz`` file; an array for each input; or an iterable of such mappings."""

LABELS = "labels"
DEFAULT_MASK = "attention_mask"


def as_samples(data: DataLike, declared: Sequence[ModelInput], mask: str | None = None) -> Samples:
    """Make samples of ``data``.

    Args:
        data: where an array is called ``labels``, and no input is, it holds the labels.
        declared: the model's inputs, which say what has no axis of samples.
        mask: the input that is the padding mask; ``attention_mask`` is found by itself.

    Raises:
        DataError: the data is empty, damaged, or its arrays do not fit together.
    """
    input_names = {model_input.name for model_input in declared}
    mask = mask or (DEFAULT_MASK if DEFAULT_MASK in input_names else None)
    if isinstance(data, Samples):
        return data if data.mask_name or not mask else replace(data, mask_name=mask)
    if isinstance(data, Path | str):
        return _with_labels(load_npz(Path(data), None, mask, declared), input_names)
    arrays = _arrays(data) if isinstance(data, Mapping) else _concatenated(list(data), mask)
    labels = None if LABELS in input_names else arrays.pop(LABELS, None)
    constants = constants_among(arrays, declared)
    return Samples(arrays, mask, labels, constants=constants)


def _with_labels(samples: Samples, input_names: set[str]) -> Samples:
    """The samples with the array ``labels`` taken for labels, where no input is called so."""
    if LABELS not in samples.inputs or LABELS in input_names:
        return samples
    inputs = dict(samples.inputs)
    return replace(samples, labels=inputs.pop(LABELS), inputs=inputs)


def _arrays(feeds: Mapping[str, Any]) -> dict[str, Array]:
    return {name: np.asarray(value) for name, value in feeds.items()}


def _concatenated(feeds: Sequence[Mapping[str, Any]], mask: str | None) -> dict[str, Array]:
    """One array ``[samples, …]`` for each input; with a mask, shorter feeds are padded with 0."""
    if not feeds:
        raise DataError("there are no feeds at all: give at least one")
    parts = [_arrays(feed) for feed in feeds]
    if any(part.keys() != parts[0].keys() for part in parts):
        raise DataError("the feeds differ in their inputs: give every feed the same names")
    return {name: _joined(name, [part[name] for part in parts], mask) for name in parts[0]}


def _joined(name: str, arrays: Sequence[Array], mask: str | None) -> Array:
    trailing = {array.shape[1:] for array in arrays}
    if len(trailing) > 1:
        if mask is None or any(array.ndim < 2 for array in arrays):
            raise DataError(
                f"the feeds differ in the shape of {name!r}, and there is no padding mask: pad them"
            )
        length = max(array.shape[1] for array in arrays)
        arrays = [_padded(array, length) for array in arrays]
    return np.concatenate(arrays)


def _padded(array: Array, length: int) -> Array:
    """``[B, length, …]``."""
    missing = [(0, 0)] * array.ndim
    missing[1] = 0, length - array.shape[1]
    return np.pad(array, missing)
