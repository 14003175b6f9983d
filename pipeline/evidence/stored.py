"""Statistics as arrays by name, for a cache: matrices at rest, vectors in float64.

What was just computed is put to rest too, cache or no cache: a model does not depend on whether
there was one. It is the *centred* covariance that is rounded: means may be a thousand times the
deviations, and of a second moment rounding would lose those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from compress_onnx.graph_passes.arrays import Float64, Stored
from compress_onnx.graph_passes.factorization import ActivationStats, GradientStats
from compress_onnx.graph_passes.factorization.symmetric import SecondMoment
from compress_onnx.pipeline.files.shelf import Shelf


def shelved(stats: ActivationStats, shelf: Shelf) -> ActivationStats:
    """``stats``, which are at rest and without gradients, with their matrix in a file."""
    return replace(stats, centred=_shelved(stats.centred, shelf))


def shelved_gradients(stats: GradientStats, shelf: Shelf) -> GradientStats:
    """Likewise for what is known from gradients."""
    return GradientStats(shelved(stats.inputs, shelf), _shelved(stats.outer, shelf))


def _shelved(kept: Float64 | SecondMoment, shelf: Shelf) -> SecondMoment:
    moment = _at_rest(kept)
    return replace(moment, correlations=shelf.put(np.asarray(moment.correlations)))


def arrays_of(stats: ActivationStats) -> dict[str, Stored]:
    """All of ``stats`` but its gradients."""
    return {
        "count": np.array(stats.count),
        "mean": stats.mean,
        "magnitude": stats.magnitude,
        **arrays_of_moment(stats.centred),
    }


def arrays_of_moment(kept: Float64 | SecondMoment) -> dict[str, Stored]:
    """A matrix, whether at rest or not."""
    moment = _at_rest(kept)
    return {"deviations": moment.deviations, "correlations": moment.correlations}


def stats_of(arrays: Mapping[str, Stored]) -> ActivationStats | None:
    """What :func:`arrays_of` made them of; None where no row was seen.

    Raises:
        KeyError: an array is missing.
    """
    count = int(np.asarray(arrays["count"]))
    if not count:
        return None
    mean, magnitude = (np.asarray(arrays[field], np.float64) for field in ("mean", "magnitude"))
    return ActivationStats(count, mean, magnitude, moment_of(arrays))


def moment_of(arrays: Mapping[str, Stored]) -> SecondMoment:
    """What :func:`arrays_of_moment` made them of.

    Raises:
        KeyError: an array is missing.
    """
    return SecondMoment(np.asarray(arrays["deviations"], np.float64), arrays["correlations"])


def _at_rest(kept: Float64 | SecondMoment) -> SecondMoment:
    return kept if isinstance(kept, SecondMoment) else SecondMoment.of(kept)
