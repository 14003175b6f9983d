"""Statistics as arrays by name, for a cache: matrices at rest, vectors in float64.

What was just computed is put to rest too, cache or no cache: a model does not depend on whether
there was one. It is the *centred* covariance that is rounded: means may be a thousand times the
deviations, and of a second moment rounding would lose those.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from compress_onnx.graph_passes.arrays import Array, Float64
from compress_onnx.graph_passes.factorization import ActivationStats
from compress_onnx.graph_passes.factorization.symmetric import SecondMoment


def arrays_of(stats: ActivationStats) -> dict[str, Array]:
    """All of ``stats`` but its gradients."""
    return {
        "count": np.array(stats.count),
        "mean": stats.mean,
        "magnitude": stats.magnitude,
        **arrays_of_moment(stats.centred),
    }


def arrays_of_moment(kept: Float64 | SecondMoment) -> dict[str, Array]:
    """A matrix, whether at rest or not."""
    moment = kept if isinstance(kept, SecondMoment) else SecondMoment.of(kept)
    return {"deviations": moment.deviations, "correlations": moment.correlations}


def stats_of(arrays: Mapping[str, Array]) -> ActivationStats | None:
    """What :func:`arrays_of` made them of; None where no row was seen.

    Raises:
        KeyError: an array is missing.
    """
    count = int(arrays["count"])
    if not count:
        return None
    mean, magnitude = (np.asarray(arrays[field], np.float64) for field in ("mean", "magnitude"))
    return ActivationStats(count, mean, magnitude, moment_of(arrays))


def moment_of(arrays: Mapping[str, Array]) -> SecondMoment:
    """What :func:`arrays_of_moment` made them of.

    Raises:
        KeyError: an array is missing.
    """
    return SecondMoment(np.asarray(arrays["deviations"], np.float64), arrays["correlations"])
