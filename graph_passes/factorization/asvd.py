"""Activation-aware SVD, exact: ``argmin ‖X(W − B)‖_F`` over B of rank r.

The metric is the covariance C of the site's inputs (centred, because the bias can absorb what the
mean contributes): ``down = W·Q``, ``up = Qᵀ`` with Q the leading eigenvectors of ``WᵀCW``, and
``b' = b + μ(W − down·up)``. Published as DRONE (Chen et al., 2021) and as the whitening of SVD-LLM
(Wang et al., 2024); the form used here inverts nothing.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as options

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.factorization.activations import ActivationStats
from compress_onnx.graph_passes.factorization.base import ErrorMetric
from compress_onnx.graph_passes.factorization.projection import project
from compress_onnx.graph_passes.factorization.stages import ProjectedWeight, Stages


@options(frozen=True, config=ConfigDict(extra="forbid"))
class ASVD:
    """asvd: the least error in the site's outputs over the calibration data, bias corrected.

    Attributes:
        stages: later ones repair what rounding did to the earlier ones, where factors are rounded.
    """

    metric: ClassVar[ErrorMetric] = "activation"
    needs_activations: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = False
    corrects_bias: ClassVar[bool] = True

    stages: Stages = 1

    def decompose(self, weight: Array, stats: ActivationStats | None) -> ProjectedWeight:
        """Decompose ``weight`` [K, N] in the metric of ``stats``.

        Raises:
            ValueError: ``stats`` is None, or is not about K inputs.
        """
        if stats is None:
            raise ValueError("asvd needs activation statistics")
        metric = stats.covariance
        return ProjectedWeight(weight, project(weight, metric), metric, stats.mean, self.stages)
