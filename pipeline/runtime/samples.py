"""A set of samples: one array for each model input, samples along the first axis.

The padding mask, where there is one, is itself a model input (``attention_mask``): 1 for real
positions, 0 for padding. Batches are cut back to their longest sample along the mask's sequence
axis, so that padding costs no time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import DataError


@dataclass(frozen=True)
class Batch:
    """Some samples of a set.

    Attributes:
        feeds: one array ``[B, ...]`` for each model input.
        index: ``[B]`` the samples' positions in the whole set.
        mask: ``[B, T]`` boolean, True for real positions; None where nothing is padded.
        labels: ``[B]``, or ``[B, T]`` where each position has its own; None without labels.
    """

    feeds: dict[str, Array]
    index: NDArray[np.intp]
    mask: NDArray[np.bool_] | None
    labels: Array | None


@dataclass(frozen=True)
class Samples:
    """Inputs, optionally with labels.

    Attributes:
        inputs: one array ``[samples, ...]`` for each model input, by input name.
        mask_name: the input that is the padding mask, ``[samples, T]``; None without padding.
        labels: ``[samples, ...]``, or None; those of the mask's shape belong to positions.
        origin: where the samples come from, for reports.

    Raises:
        DataError: no input, no sample, or arrays of different lengths.
    """

    inputs: Mapping[str, Array]
    mask_name: str | None = None
    labels: Array | None = None
    origin: str = field(default="arrays", compare=False)

    def __post_init__(self) -> None:
        if not self.inputs:
            raise DataError(f"{self.origin}: there is no input array at all")
        arrays = (
            dict(self.inputs) if self.labels is None else {**self.inputs, "labels": self.labels}
        )
        lengths = {name: (len(a) if a.ndim else 0) for name, a in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"{self.origin}: arrays differ in their number of samples: {lengths}")
        if 0 in lengths.values():
            raise DataError(f"{self.origin}: there are no samples")
        if self.mask_name is not None and self.mask_name not in self.inputs:
            raise DataError(
                f"{self.origin}: the padding mask {self.mask_name!r} is not among the inputs "
                f"({', '.join(self.inputs)})"
            )
        if self.mask_name is not None and self.inputs[self.mask_name].ndim != 2:
            raise DataError(
                f"{self.origin}: the padding mask {self.mask_name!r} has shape "
                f"{self.inputs[self.mask_name].shape}, not [samples, T]"
            )
        for name, array in self.inputs.items():
            if array.dtype.kind not in "fiub":
                raise DataError(
                    f"{self.origin}: input {name!r} has dtype {array.dtype}, not numbers"
                )
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise DataError(f"{self.origin}: input {name!r} contains NaN or infinite values")

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def take(self, count: int) -> Samples:
        """The first ``count`` samples."""
        return self.select(np.arange(min(count, len(self))))

    def select(self, index: NDArray[np.intp]) -> Samples:
        """The samples at the positions ``index``."""
        labels = None if self.labels is None else self.labels[index]
        inputs = {name: array[index] for name, array in self.inputs.items()}
        return Samples(inputs, self.mask_name, labels, self.origin)

    def split(self, every: int) -> tuple[Samples, Samples]:
        """All but every ``every``-th sample, and those.

        Raises:
            DataError: there are too few samples.
        """
        if len(self) < every:
            raise DataError(f"{self.origin}: {len(self)} samples are too few to hold some out")
        index = np.arange(len(self))
        held_out = index % every == every - 1
        return self.select(index[~held_out]), self.select(index[held_out])

    def batches(self, size: int) -> Iterator[Batch]:
        """Cut into batches of at most ``size``; with a mask, samples of like length together."""
        if self.mask_name is None:
            order = np.arange(len(self))
        else:
            mask = self.inputs[self.mask_name]
            order = np.argsort(-mask.astype(bool).sum(axis=1), kind="stable")
        for start in range(0, len(self), size):
            yield self._batch(order[start : start + size])

    def _batch(self, index: NDArray[np.intp]) -> Batch:
        feeds = {name: np.ascontiguousarray(array[index]) for name, array in self.inputs.items()}
        labels = None if self.labels is None else self.labels[index]
        if self.mask_name is None:
            return Batch(feeds, index, None, labels)
        mask = feeds[self.mask_name].astype(bool)
        used = np.flatnonzero(mask.any(axis=0))
        start, stop = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        width = mask.shape[1]

        def trimmed(array: Array) -> Array:
            # What has the mask's axis is per-position: it shrinks with it.
            if array.ndim < 2 or array.shape[1] != width:
                return array
            return np.ascontiguousarray(array[:, start:stop])

        inputs = {name: trimmed(array) for name, array in feeds.items()}
        return Batch(
            inputs, index, mask[:, start:stop], None if labels is None else trimmed(labels)
        )
