"""Plain truncated SVD: the least error in the weights themselves (Eckart-Young)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as options

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.factorization.activations import ActivationStats
from compress_onnx.graph_passes.factorization.base import ErrorMetric
from compress_onnx.graph_passes.factorization.projection import project
from compress_onnx.graph_passes.factorization.stages import ProjectedWeight


@options(frozen=True, config=ConfigDict(extra="forbid"))
class SVD:
    """svd: truncated SVD of the weight; needs no data."""

    metric: ClassVar[ErrorMetric] = "weight"
    needs_activations: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    corrects_bias: ClassVar[bool] = False

    def decompose(self, weight: Array, stats: ActivationStats | None) -> ProjectedWeight:  # noqa: ARG002
        """Decompose ``weight`` [K, N]; ``stats`` are not used."""
        return ProjectedWeight(weight, project(weight))
