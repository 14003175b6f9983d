"""Two-sided weighting: the least damage to the *model's* outputs, to second order.

With C the covariance of the site's inputs (rows weighted with ‖g‖²) and G the second moment of the
gradients g at its output (:class:`~graph_passes.factorization.activations.GradientStats`),
replacing W by B changes the model's outputs by about ``tr(G (W − B)ᵀ C (W − B))``. With a Cholesky
factor ``G = H Hᵀ`` that is the one-sided problem of
:mod:`~graph_passes.factorization.projection` for the weight ``W H``: with Q its optimal basis, ::

    down = (W H) Q        up = Qᵀ H⁻¹

Only G is inverted, so only G is damped: by ``damping`` times its mean eigenvalue, which keeps
directions in which the outputs hardly change from being given up altogether. The norms of each
column of ``down`` and row of ``up`` are balanced; left as they come out, the factors train badly
and round badly. The squared errors of different sites are in one unit, the squared change of the
model's outputs, which is what makes them fit to share a budget out by.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as options

from compress_onnx.graph_passes.arrays import Array, Float64
from compress_onnx.graph_passes.factorization.activations import ActivationStats
from compress_onnx.graph_passes.factorization.base import ErrorMetric
from compress_onnx.graph_passes.factorization.projection import project
from compress_onnx.graph_passes.factorization.stages import ProjectedWeight, Stages
from compress_onnx.graph_passes.factorization.symmetric import ridged


@options(frozen=True, config=ConfigDict(extra="forbid"))
class GaussNewton:
    """gauss-newton: the least error in the model's outputs, by its gradients; bias corrected.

    Attributes:
        damping: what is added to the moment of the gradients, in its mean eigenvalues.
        stages: later ones repair what rounding did to the earlier ones, where factors are rounded.
    """

    metric: ClassVar[ErrorMetric] = "output"
    needs_activations: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = True
    corrects_bias: ClassVar[bool] = True

    damping: Annotated[float, Field(gt=0, le=1)] = 0.02
    stages: Stages = 1

    def decompose(self, weight: Array, stats: ActivationStats | None) -> ProjectedWeight:
        """Decompose ``weight`` [K, N] in the metrics of ``stats``.

        Raises:
            ValueError: ``stats`` is None, has no gradients, or is about other shapes.
        """
        if stats is None or stats.gradients is None:
            raise ValueError("gauss-newton needs activation statistics with gradients")
        inputs, sizes = stats.gradients.inputs, (len(stats.mean), stats.gradients.outputs)
        if weight.shape != sizes:
            raise ValueError(f"a site of shape {sizes} does not fit a weight {weight.shape}")
        half = damped_half(stats.gradients.moment, self.damping)
        metric = inputs.covariance
        projection = project(weight.astype(np.float64) @ half, metric)
        return ProjectedWeight(weight, projection, metric, inputs.mean, self.stages, half=half)


def damped_half(moment: Float64, damping: float) -> Float64:
    """``[N, N]`` the lower triangle H with ``H Hᵀ = moment + damping·mean eigenvalue``.

    A site that no output depends on has a moment of zero; every metric is right for it, so H = I.
    """
    size = len(moment)
    mean = float(np.trace(moment)) / size
    if mean <= 0:
        return np.eye(size)
    return np.asarray(np.linalg.cholesky(ridged(moment, damping * mean)), np.float64)
