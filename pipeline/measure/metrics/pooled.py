"""Outputs of both models, pooled to one vector a sample."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.pipeline.measure.metrics.base import Outputs, select_output
from compress_onnx.pipeline.runtime.samples import Batch

Vectors = NDArray[np.float64]


class PooledPairs:
    """Accumulates the vectors of both models, ``[samples, D]`` each; ``len`` counts the samples.

    Args:
        output: the name of the output; None where there is one that fits.
        pooling: as :func:`pool` takes it.
    """

    def __init__(self, output: str | None, pooling: str) -> None:
        self._output = output
        self._pooling = pooling
        self._reference: list[Vectors] = []
        self._candidate: list[Vectors] = []

    def __len__(self) -> int:
        return sum(len(vectors) for vectors in self._reference)

    def add(self, batch: Batch, reference: Outputs, candidate: Outputs) -> None:
        """Pool one batch.

        Raises:
            RequestError: the output does not fit the pooling.
            ModelFileError: the models' outputs differ in shape.
        """
        rank = 2 if self._pooling == "none" else 3
        ours, theirs = select_output(reference, candidate, wanted=self._output, rank=rank)
        self._reference.append(pool(ours, batch.mask, self._pooling))
        self._candidate.append(pool(theirs, batch.mask, self._pooling))

    def unit(self) -> tuple[Vectors, Vectors] | None:
        """All vectors, at unit length; None where a number is not finite."""
        reference, candidate = np.concatenate(self._reference), np.concatenate(self._candidate)
        if not (np.isfinite(reference).all() and np.isfinite(candidate).all()):
            return None
        return _unit(reference), _unit(candidate)


def pool(output: Array, mask: NDArray[np.bool_] | None, pooling: str) -> Vectors:
    """One float64 vector ``[B, D]`` a sample.

    Args:
        output: ``[B, T, D]``; ``[B, D]`` for the pooling ``none``.
        mask: ``[B, T]``, True for real positions; None where all are real.
        pooling: ``mean`` over the real positions, ``cls`` (the first real one), or ``none``.

    Raises:
        RequestError: the mask does not fit the output.
    """
    if pooling == "none":
        return output.astype(np.float64)
    if mask is None:
        mask = np.ones(output.shape[:2], bool)
    if mask.shape != output.shape[:2]:
        raise RequestError(
            f"a padding mask {list(mask.shape)} does not fit an output {list(output.shape)}: "
            "name an output with one vector a position, or use the pooling 'none'"
        )
    if pooling == "cls":
        first: Array = output[np.arange(len(output)), mask.argmax(axis=1)]
        return first.astype(np.float64)
    total: Vectors = np.sum(output, axis=1, dtype=np.float64, where=mask[..., None])
    mean: Vectors = total / np.maximum(mask.sum(axis=1), 1)[:, None]
    return mean


def _unit(vectors: Vectors) -> Vectors:
    """``[samples, D]`` scaled to unit length; zeros stay zeros."""
    norms: Vectors = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms == 0.0, 1.0, norms)
