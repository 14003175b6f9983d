"""How sure the mean of paired differences is."""

from __future__ import annotations

import numpy as np
from scipy.stats import bootstrap

from compress_onnx.graph_passes.arrays import Float64

_RESAMPLES, _RESAMPLES_AT_A_TIME = 2000, 100


def mean_interval(differences: Float64) -> tuple[float, float]:
    """The 95 % interval of the mean of ``differences``, by a percentile bootstrap.

    It does not depend on the order of the samples; where all differences are the same, both ends
    are that.
    """
    ordered = np.sort(differences)
    if not np.ptp(ordered):
        return float(ordered[0]), float(ordered[0])
    interval = bootstrap(
        (ordered,),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=_RESAMPLES_AT_A_TIME,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)
