"""A set of samples: one array for each model input, samples along the first axis.

The padding mask, where there is one, is itself a model input (``attention_mask``): 1 for real
positions, 0 for padding. Batches are cut back to their longest sample along the mask's sequence
axis, so that padding costs no time.

Some inputs have no axis of samples: a flag such as ``use_cache_branch``, a trip count, a table.
They are constants, fed whole with every batch. A number without axes always is one; which other
arrays are, the model's declaration says (:func:`pipeline.runtime.inputs.constants_among`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.runtime.padding import used_columns


@dataclass(frozen=True)
class Batch:
    """Some samples of a set.

    Attributes:
        feeds: one array ``[B, ...]`` for each model input; constants as they are.
        index: ``[B]`` the samples' positions in the whole set.
        mask: ``[B, T]`` boolean, True for real positions; None where nothing is padded.
        labels: ``[B]``, or ``[B, T]`` where each position has its own; None without labels.
        constants: the inputs among ``feeds`` that have no axis of samples.
    """

    feeds: dict[str, Array]
    index: NDArray[np.intp]
    mask: NDArray[np.bool_] | None
    labels: Array | None
    constants: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Samples:
    """Inputs, optionally with labels.

    Attributes:
        inputs: one array ``[samples, ...]`` for each model input, by input name; a constant has
            any shape.
        mask_name: the input that is the padding mask, ``[samples, T]``; None without padding.
        labels: ``[samples, ...]``, or None; those of the mask's shape belong to positions.
        origin: where the samples come from, for reports.
        constants: the inputs without an axis of samples; those of rank 0 are added.

    Raises:
        DataError: no input, no sample, or arrays of different lengths.
    """

    inputs: Mapping[str, Array]
    mask_name: str | None = None
    labels: Array | None = None
    origin: str = field(default="arrays", compare=False)
    constants: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not self.inputs:
            raise DataError(f"{self.origin}: there is no input array at all")
        scalars = {name for name, array in self.inputs.items() if array.ndim == 0}
        object.__setattr__(self, "constants", self.constants | scalars)
        lengths = {name: len(self.inputs[name]) for name in self._sampled}
        if self.labels is not None:
            lengths["labels"] = len(self.labels) if self.labels.ndim else 0
        if len(set(lengths.values())) > 1:
            raise DataError(
                f"{self.origin}: arrays differ in their number of samples: {lengths}; an input "
                "without an axis of samples must have exactly the shape that the model declares"
            )
        if not self._sampled or 0 in lengths.values():
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
        return len(self.inputs[self._sampled[0]])

    @property
    def _sampled(self) -> list[str]:
        """The inputs with an axis of samples."""
        return [name for name in self.inputs if name not in self.constants]

    def take(self, count: int) -> Samples:
        """The first ``count`` samples."""
        return self.select(np.arange(min(count, len(self))))

    def select(self, index: NDArray[np.intp]) -> Samples:
        """The samples at the positions ``index``."""
        labels = None if self.labels is None else self.labels[index]
        return Samples(
            self._rows(index), self.mask_name, labels, self.origin, constants=self.constants
        )

    def batches(
        self,
        size: int,
        untrimmed: Collection[str] = (),
        positions: int | None = None,
        multiple: int = 1,
    ) -> Iterator[Batch]:
        """Cut into batches of at most ``size``; with a mask, samples of like length together.

        Args:
            size: samples in a batch.
            untrimmed: inputs whose second axis is none of positions, though it has their number.
            positions: what a batch with a mask has at most, all its samples as long as the longest;
                one sample may have more.
            multiple: of which the positions of a sample are a multiple, where padding is so long.
        """
        if self.mask_name is None:
            for start in range(0, len(self), size):
                rows = np.arange(start, min(start + size, len(self)))
                yield self._batch(rows, untrimmed, multiple)
            return
        lengths = self.inputs[self.mask_name].astype(bool).sum(axis=1)
        order = np.argsort(-lengths, kind="stable")
        start = 0
        while start < len(self):
            longest = max(1, int(lengths[order[start]]))
            count = size if positions is None else min(size, max(1, positions // longest))
            yield self._batch(order[start : start + count], untrimmed, multiple)
            start += count

    def _rows(self, index: NDArray[np.intp]) -> dict[str, Array]:
        """The inputs ``[len(index), ...]`` of some samples; constants whole."""
        return {
            name: array if name in self.constants else np.ascontiguousarray(array[index])
            for name, array in self.inputs.items()
        }

    def _batch(self, index: NDArray[np.intp], untrimmed: Collection[str], multiple: int) -> Batch:
        feeds = self._rows(index)
        labels = None if self.labels is None else self.labels[index]
        if self.mask_name is None:
            return Batch(feeds, index, None, labels, self.constants)
        mask = feeds[self.mask_name].astype(bool)
        used, width = used_columns(mask, multiple), mask.shape[1]

        def trimmed(array: Array) -> Array:
            # What has the mask's axis is per-position: [B, T, ...] shrinks with it.
            if array.ndim < 2 or array.shape[1] != width:
                return array
            return np.ascontiguousarray(array[:, used])

        kept = self.constants.union(untrimmed)
        inputs = {n: array if n in kept else trimmed(array) for n, array in feeds.items()}
        labels = None if labels is None else trimmed(labels)
        return Batch(inputs, index, mask[:, used], labels, self.constants)


def every_nth(count: int, every: int) -> NDArray[np.bool_]:
    """``[count]`` True for the last of each ``every``: which of so many to hold out."""
    chosen: NDArray[np.bool_] = np.arange(count) % every == every - 1
    return chosen
