"""Statistics as a cache keeps them: matrices in float32, half their size.

What is left out is a relative 6e-8 of each entry of a covariance or a moment, far below what a
finite sample leaves open. It is the *centred* covariance that is rounded: means may be a thousand
times the deviations, and a second moment in float32 would lose those. Vectors stay in float64.

What was just computed is rounded too, cache or no cache: a model does not depend on whether there
was one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from compress_onnx.graph_passes.arrays import Array


def compact(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """``arrays`` with the float64 ones of two axes and more in float32."""
    return {
        name: array.astype(np.float32) if array.ndim > 1 and array.dtype == np.float64 else array
        for name, array in arrays.items()
    }
