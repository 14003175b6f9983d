"""What about a model's outputs matters: the objective that errors are weighed by.

* ``positions``: every element of every output on its own, by its square; for outputs
  ``[samples, classes]`` these are the logits.
* ``pooled``: the mean over all axes but the first and the last, by direction only (divided by its
  length, across it): what a sentence embedding is used for. Outputs of two axes have nothing to
  pool and count as under ``positions``.

Padding never counts. An objective is the squared norm of a linear function of the outputs' change;
:func:`signs` is its random projection, which a backward pass starts from, and :func:`change` the
norm itself.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from compress_onnx.graph_passes.arrays import Array, Float32, Float64
from compress_onnx.pipeline.runtime.padding import real_weights
from compress_onnx.pipeline.runtime.samples import Batch

Objective = Literal["positions", "pooled"]

_SHORTEST = 1e-12


def signs(output: Array, batch: Batch, objective: Objective, rng: np.random.Generator) -> Float32:
    """A random projection of one output: the adjoint, of its shape, to start from."""
    real = _real_positions(output, batch)
    if objective == "positions" or output.ndim < 3:
        return _random_signs(output.shape, rng) * real
    share, length, direction = _pooling(output, real)
    drawn = _random_signs(direction.shape, rng)
    return np.asarray(_across(drawn, direction) / length * share, np.float32)


def change(output: Array, changed: Array, batch: Batch, objective: Objective) -> float:
    """The squared change of one output, summed over the samples of ``batch``."""
    real = _real_positions(output, batch)
    difference = changed.astype(np.float64) - output.astype(np.float64)
    if objective == "positions" or output.ndim < 3:
        return float(np.sum(real * difference**2))
    share, length, direction = _pooling(output, real)
    pooled = np.sum(difference * share, axis=_positions(output), keepdims=True)
    return float(np.sum((_across(pooled, direction) / length) ** 2))


def _pooling(output: Array, real: Float32) -> tuple[Float64, Float64, Float64]:
    """The weight of each position, and the length and direction of the mean."""
    axes = _positions(output)
    share = real / np.maximum(real.sum(axis=axes, keepdims=True, dtype=np.float64), 1)
    mean = np.sum(output.astype(np.float64) * share, axis=axes, keepdims=True)
    length = np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), _SHORTEST)
    return share, length, mean / length


def _across(vectors: NDArray[np.floating], direction: Float64) -> Float64:
    """``vectors`` without their part along the unit vectors ``direction``."""
    along = np.sum(vectors * direction, axis=-1, keepdims=True)
    return np.asarray(vectors - along * direction, np.float64)


def _positions(output: Array) -> tuple[int, ...]:
    return tuple(range(1, output.ndim - 1))


def _real_positions(output: Array, batch: Batch) -> Float32:
    """``[..., 1]``: 1 at real positions of ``[B, T, ..., D]`` or ``[B·T, D]``, 0 at padding."""
    weights = real_weights(output, batch.mask)
    return weights[..., None] if output.ndim else weights  # a single number has no axis


def _random_signs(shape: tuple[int, ...], rng: np.random.Generator) -> Float32:
    return np.asarray(rng.integers(0, 2, shape) * 2 - 1, np.float32)
