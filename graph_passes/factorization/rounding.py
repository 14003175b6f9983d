"""Integers in place of numbers: of a layer's weight, and of its inputs while the model runs.

With a scale t_n for each column of W [K, N], and one scale s and zero point z for the inputs::

    W ≈ Q·diag(t)        Q [K, N] int8, symmetric
    x ≈ s·(q − z)        q uint8
    x·W ≈ s·t ∘ ((q − z)·Q)

Scales of inputs come from ranges that were seen in calibration, not from the batch at hand: what a
sample becomes then does not depend on its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress_onnx.graph_passes.arrays import Array, Float32, Floats, Indices

LIMIT = 127
"""The largest integer of a weight."""

LIMIT_WITHOUT_VNNI = 63
"""The same where products of uint8 and int8 are added up in 16 bits, which larger ones overflow."""


@dataclass(frozen=True)
class RoundedWeight:
    """Integers ``[K, N]``, and the float32 scale ``[N]`` of each column."""

    numbers: NDArray[np.int8]
    scale: Float32


def round_weight(weight: Array, limit: int = LIMIT, factor: float = 1.0) -> RoundedWeight:
    """Round ``factor · weight`` [K, N] to integers up to ``limit``, a scale for each column."""
    exact = factor * weight.astype(np.float64)
    largest = np.abs(exact).max(axis=0)
    # A column of zeros, or of numbers that no float32 scale reaches, has any scale.
    scale = np.maximum(largest / limit, np.finfo(np.float32).tiny).astype(np.float32)
    numbers = np.clip(np.rint(exact / scale.astype(np.float64)), -limit, limit)
    return RoundedWeight(numbers.astype(np.int8), scale)


@dataclass(frozen=True)
class InputScale:
    """One scale and zero point for all inputs of a layer."""

    scale: np.float32
    zero_point: np.uint8


@dataclass(frozen=True)
class InputRange:
    """What was seen of each input of a layer.

    Attributes:
        low, high: ``[K]`` the least and the largest value.
        power: ``[K]`` the mean square.
    """

    low: Floats
    high: Floats
    power: Floats

    @property
    def magnitude(self) -> Floats:
        """``[K]``."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def divided(self, divisor: Floats) -> InputRange:
        """Of inputs divided by ``divisor`` [K]."""
        return InputRange(self.low / divisor, self.high / divisor, self.power / divisor**2)

    def without(self, aside: Indices) -> InputRange:
        """Of the inputs that are not ``aside``."""
        return InputRange(*(np.delete(x, aside) for x in (self.low, self.high, self.power)))

    def scale(self) -> InputScale:
        """The finest that reaches every value; zero is exact, as padding and ReLU want it."""
        low, high = min(float(self.low.min()), 0.0), max(float(self.high.max()), 0.0)
        step = np.float32((high - low) / 255) or np.float32(1.0)
        return InputScale(step, np.uint8(np.clip(np.rint(-low / float(step)), 0, 255)))

    def outliers(self, most: int, ratio: float) -> Indices:
        """The ``most`` furthest inputs; none unless the scale is ``ratio`` finer without some.

        Nor where they would be half of all or more: no branch for what is left.
        """
        if len(self.low) <= 2 * most:
            return np.empty(0, dtype=np.intp)
        order = np.argsort(self.magnitude, kind="stable")[::-1]
        for count in range(1, most + 1):
            rest = order[count:]
            spread = max(self.high[rest].max(), 0) - min(self.low[rest].min(), 0)
            whole = max(self.high.max(), 0) - min(self.low.min(), 0)
            if spread * ratio <= whole:
                return np.sort(order[:most])
        return np.empty(0, dtype=np.intp)
