"""FWSVD (Hsu et al., ICLR 2022, arXiv:2207.00112): SVD weighted with Fisher information.

The Fisher information of one element of W is the mean, over samples, of the squared derivative of
the loss. A weight for each element would leave no closed form, so that of a row is the sum of its
elements', ``I_k = Σ_n Σ_j (∂L_n/∂W_kj)²``, and the truncated SVD of ``diag(√I)·W`` is mapped back.
Every layer keeps the same share.

With x [T, K] the inputs of a sample and g [T, N] the gradients at the outputs, ``∂L/∂W = xᵀg``,
whose rows have the squared norms ``diag(xᵀ(g gᵀ)x)``: a T × T matrix a sample instead of K × N.
"""

from __future__ import annotations

import numpy as np

from compress_onnx.graph_passes.arrays import Array, Float64
from compress_onnx.graph_passes.factorization.projection import project
from compress_onnx.graph_passes.factorization.stages import ProjectedWeight
from compress_onnx.pipeline.evidence.backward import SiteValues, backward
from studies.peers.contestant import Compressor, Contestant, compressor
from studies.peers.laboratory import Laboratory
from studies.peers.loss import adjoint


def fisher_weighted(weight: Array, information: Float64) -> ProjectedWeight:
    """Decompose ``weight`` [K, N] with its rows weighted by ``information`` [K]."""
    return ProjectedWeight(weight, project(weight, information))


def row_information(values: SiteValues, samples: int) -> Float64:
    """``[K]`` the squared derivatives of each row of W, summed over a batch of ``samples``."""
    x = values.inputs.reshape(samples, -1, values.inputs.shape[-1]).astype(np.float32)
    g = values.gradient.reshape(samples, -1, values.gradient.shape[-1])
    mixed = (g @ np.swapaxes(g, 1, 2)) @ x
    rows: Float64 = np.einsum("ntk,ntk->k", x, mixed, dtype=np.float64)
    return rows


def information(laboratory: Laboratory) -> dict[str, Float64]:
    """The Fisher information of each row, by the weight's key, a sample."""
    settings = laboratory.settings
    keys = {layer.site.name: layer.key for layer in laboratory.layers}
    total = {layer.key: np.zeros(layer.site.in_features) for layer in laboratory.layers}
    for batch, sites in backward(
        laboratory.original,
        [layer.site for layer in laboratory.layers],
        laboratory.samples,
        adjoint(laboratory, settings.seed),
        settings,
    ):
        for name, values in sites.items():
            total[keys[name]] += row_information(values, len(batch.index))
    # Rounding may leave a row without gradient slightly below zero.
    return {k: np.maximum(rows, 0.0) / len(laboratory.samples) for k, rows in total.items()}


def _learn(laboratory: Laboratory) -> Compressor:
    rows = information(laboratory)
    found = {
        layer.key: fisher_weighted(layer.weight, rows[layer.key]) for layer in laboratory.layers
    }
    return compressor(laboratory, found, laboratory.uniform)


FWSVD = Contestant(
    "FWSVD",
    ours=False,
    source="Hsu et al., ICLR 2022: rows weighted with their Fisher information, uniform ranks",
    activations=False,
    learn=_learn,
)
