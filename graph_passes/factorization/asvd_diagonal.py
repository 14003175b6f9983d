"""The scaling variant of activation-aware SVD (ASVD4LLM, Yuan et al., 2023).

The truncated SVD of ``S·W`` with the diagonal ``S = diag(E|x|^α)``, mapped back by S⁻¹. In the
terms of :mod:`~graph_passes.factorization.projection` that is the diagonal metric ``C = S²``, which
needs no S⁻¹. Kept for comparison: it ignores how inputs correlate, and corrects no bias.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as options

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.factorization.activations import ActivationStats
from compress_onnx.graph_passes.factorization.base import ErrorMetric
from compress_onnx.graph_passes.factorization.projection import project
from compress_onnx.graph_passes.factorization.stages import ProjectedWeight


@options(frozen=True, config=ConfigDict(extra="forbid"))
class DiagonalASVD:
    """asvd-diagonal: SVD of the weight with its input channels scaled by E|x|^alpha.

    Attributes:
        alpha: how strongly the scale follows the activations; 0 is plain SVD.
    """

    metric: ClassVar[ErrorMetric] = "scaled"
    needs_activations: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = False
    corrects_bias: ClassVar[bool] = False

    alpha: Annotated[float, Field(ge=0, le=2)] = 0.5

    def decompose(self, weight: Array, stats: ActivationStats | None) -> ProjectedWeight:
        """Decompose ``weight`` [K, N] scaled by ``E|x|^alpha``.

        Raises:
            ValueError: ``stats`` is None, or is not about K inputs.
        """
        if stats is None:
            raise ValueError("asvd-diagonal needs activation statistics")
        # A channel that is always zero must keep a vanishing weight, also with alpha = 0.
        scale = np.where(stats.magnitude > 0, stats.magnitude**self.alpha, 0.0)
        return ProjectedWeight(weight, project(weight, scale**2))
