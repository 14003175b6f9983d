"""Adam, in coordinates of each array.

Each array's step is relative to its own scale, so that one learning rate serves factors, biases and
norm scales of any model. Matrices are moved in coordinates of their own
(:mod:`pipeline.recover.whitening`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from compress_onnx.pipeline.recover.whitening import Whitening

_FIRST, _SECOND = 0.9, 0.99
_EPSILON = 1e-12
_LEAST_SCALE = 1e-3


class Adam:
    """Adam on named arrays, in place.

    Args:
        arrays: what is trained; changed by :meth:`step`.
        whitening: the coordinates in which some of them are moved, by name.
        half: products with these coordinates are of bfloat16.

    Attributes:
        steps: taken since the beginning, or since it last began again.
        moments: running means of gradients (``first/NAME``) and of squares (``second/NAME``).
    """

    def __init__(
        self,
        arrays: Mapping[str, Tensor],
        whitening: Mapping[str, Whitening] | None = None,
        *,
        half: bool = False,
    ) -> None:
        self._arrays = arrays
        self._whitening = whitening or {}
        self._half = half
        self._scales = {
            name: max(float(array.square().mean().sqrt()), _LEAST_SCALE)
            for name, array in arrays.items()
        } | {name: white.scale for name, white in self._whitening.items()}
        self.steps = 0
        self.moments: dict[str, Tensor] = {
            f"{moment}/{name}": torch.zeros_like(array)
            for name, array in arrays.items()
            for moment in ("first", "second")
        }

    def forget(self) -> None:
        """Begin again with the arrays as they are now."""
        self.steps = 0
        for moment in self.moments.values():
            moment.zero_()

    def first_step(
        self, arrays: Mapping[str, Tensor], gradients: Mapping[str, Tensor], rate: float
    ) -> None:
        """What the first :meth:`step` would do, to ``arrays``; remembers nothing."""
        for name, gradient in gradients.items():
            white = self._in_coordinates(name, gradient)
            change = (white / (white.abs() + _EPSILON)).mul_(rate * self._scales[name])
            arrays[name].sub_(self._in_coordinates(name, change))

    def step(self, gradients: Mapping[str, Tensor], rate: float) -> None:
        """Move every array against its gradient by about ``rate`` times its scale."""
        self.steps += 1
        unbias_first, unbias_second = (1 - b**self.steps for b in (_FIRST, _SECOND))
        for name, steepest in gradients.items():
            first, second = self.moments[f"first/{name}"], self.moments[f"second/{name}"]
            gradient = self._in_coordinates(name, steepest)
            first.lerp_(gradient, 1 - _FIRST)
            second.mul_(_SECOND).addcmul_(gradient, gradient, value=1 - _SECOND)
            length = (second / unbias_second).sqrt_().add_(_EPSILON)
            change = (first / length).mul_(rate * self._scales[name] / unbias_first)
            self._arrays[name].sub_(self._in_coordinates(name, change))

    def _in_coordinates(self, name: str, array: Tensor) -> Tensor:
        """``P·array`` where ``name`` has coordinates of its own: there, and back again."""
        white = self._whitening.get(name)
        return array if white is None else white.apply(array, self._half)
