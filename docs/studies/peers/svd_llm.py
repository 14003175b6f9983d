"""SVD-LLM (Wang et al., ICLR 2025, arXiv:2403.07378): truncation-aware whitening.

With the second moment ``E[x xᵀ] = SᵀS`` of a layer's inputs, not centred, the truncated SVD of
``S·W`` is mapped back by S⁻¹: the least error of the layer's outputs, and its squared singular
values are that error. The form used here projects instead of inverting S
(:mod:`graph_passes.factorization.projection`), which gives the same product. Every layer keeps the
same share. This is the one-shot variant, named (W) in the paper: no update of the factors
afterwards, and no correction of the bias.
"""

from __future__ import annotations

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.factorization import ActivationStats
from compress_onnx.graph_passes.factorization.projection import project
from compress_onnx.graph_passes.factorization.stages import ProjectedWeight
from studies.peers.contestant import Compressor, Contestant, compressor
from studies.peers.laboratory import Laboratory


def whitened(weight: Array, stats: ActivationStats) -> ProjectedWeight:
    """Decompose ``weight`` [K, N] in the metric of the uncentred second moment."""
    return ProjectedWeight(weight, project(weight, stats.second_moment))


def _learn(laboratory: Laboratory) -> Compressor:
    found = {layer.key: whitened(layer.weight, layer.stats) for layer in laboratory.layers}
    return compressor(laboratory, found, laboratory.uniform)


SVD_LLM = Contestant(
    "SVD-LLM (W)",
    ours=False,
    source="Wang et al., ICLR 2025: whitening with the uncentred second moment, uniform ranks",
    activations=True,
    learn=_learn,
)
