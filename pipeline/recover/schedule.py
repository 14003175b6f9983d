"""The schedule of the step size."""

from __future__ import annotations

import math

_WARM_UP = 0.03


def scheduled(done: float) -> float:
    """The share of the learning rate at the share ``done`` of the training: ramp, then cosine."""
    if done < _WARM_UP:
        return max(done, _WARM_UP / 10) / _WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP)))
