"""SVDLoRA: N stages, each the truncated SVD of what the earlier stages left over.

What stages can and cannot do: :mod:`~graph_passes.factorization.stages`.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as options

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.factorization.activations import ActivationStats
from compress_onnx.graph_passes.factorization.base import ErrorMetric
from compress_onnx.graph_passes.factorization.projection import project
from compress_onnx.graph_passes.factorization.stages import Layout, ProjectedWeight, Stages


@options(frozen=True, config=ConfigDict(extra="forbid"))
class SVDLoRA:
    """svdlora: several stages of SVD, each on the residual of the earlier ones.

    Attributes:
        stages: number of sub-matrices; they share the rank evenly.
        layout: ``merged`` (one chain) or ``branches`` (one chain a stage, summed, as in the paper).
    """

    metric: ClassVar[ErrorMetric] = "weight"
    needs_activations: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    corrects_bias: ClassVar[bool] = False

    stages: Stages = 3
    layout: Layout = "merged"

    def decompose(self, weight: Array, stats: ActivationStats | None) -> ProjectedWeight:  # noqa: ARG002
        """Decompose ``weight`` [K, N]; ``stats`` are not used."""
        return ProjectedWeight(weight, project(weight), stages=self.stages, layout=self.layout)
