"""Adam, and the schedule of its step size.

Each array's step is relative to its own scale, so that one learning rate serves factors, biases and
norm scales of any model. Matrices are moved in coordinates of their own
(:mod:`pipeline.recover.whitening`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from compress_onnx.graph_passes.arrays import Float32
from compress_onnx.pipeline.recover.whitening import Whitening
from compress_onnx.pipeline.runtime.threads import side_by_side

_FIRST, _SECOND = 0.9, 0.99
_EPSILON = 1e-12
_LEAST_SCALE = 1e-3
_WARM_UP = 0.03


class Adam:
    """Adam on named arrays, in place.

    Args:
        arrays: what is trained; changed by :meth:`step`.
        whitening: the coordinates in which some of them are moved, by name.

    Attributes:
        steps: taken since the beginning, or since it last began again.
        moments: running means of gradients (``first/NAME``) and of squares (``second/NAME``).
    """

    def __init__(
        self, arrays: Mapping[str, Float32], whitening: Mapping[str, Whitening] | None = None
    ) -> None:
        self._arrays = arrays
        self._whitening = whitening or {}
        self._scales = {
            name: max(float(np.sqrt(np.mean(array * array))), _LEAST_SCALE)
            for name, array in arrays.items()
        } | {name: white.scale for name, white in self._whitening.items()}
        self.steps = 0
        self.moments: dict[str, Float32] = {
            f"{moment}/{name}": np.zeros_like(array)
            for name, array in arrays.items()
            for moment in ("first", "second")
        }

    def forget(self) -> None:
        """Begin again with the arrays as they are now."""
        self.steps = 0
        for moment in self.moments.values():
            moment[...] = 0

    def step(self, gradients: Mapping[str, Float32], rate: float) -> None:
        """Move every array against its gradient by about ``rate`` times its scale."""
        self.steps += 1
        side_by_side(lambda found: self._move(*found, rate), gradients.items())

    def _move(self, name: str, steepest: Float32, rate: float) -> None:
        unbias_first = 1 - _FIRST**self.steps
        unbias_second = 1 - _SECOND**self.steps
        white = self._whitening.get(name)
        first, second = self.moments[f"first/{name}"], self.moments[f"second/{name}"]
        # What diverges is seen by the loss of the next step.
        with np.errstate(over="ignore", invalid="ignore"):
            gradient = steepest if white is None else white.apply(steepest)
            first += np.float32(1 - _FIRST) * (gradient - first)
            second += np.float32(1 - _SECOND) * (gradient * gradient - second)
            length = np.sqrt(second / np.float32(unbias_second)) + np.float32(_EPSILON)
            change = np.float32(rate * self._scales[name] / unbias_first) * first / length
            self._arrays[name][...] -= change if white is None else white.apply(change)


def scheduled(done: float) -> float:
    """The share of the learning rate at the share ``done`` of the training: ramp, then cosine."""
    if done < _WARM_UP:
        return max(done, _WARM_UP / 10) / _WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP)))
