"""What each site's weight would lose at every rank: the facts behind a choice of ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compress_onnx.graph_passes.arrays import Float64
from compress_onnx.graph_passes.factorization import Known
from compress_onnx.graph_passes.factorization.asvd import ASVD
from compress_onnx.graph_passes.factorization.projection import tail_of
from compress_onnx.graph_passes.factorization.stack import decompose
from compress_onnx.graph_passes.factorization.svd import SVD
from compress_onnx.graph_passes.planning.evidence import evidence_in
from compress_onnx.graph_passes.sites.find import LinearSite


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Relative squared error at each rank, of the optimum in two metrics, and of the inputs.

    Attributes:
        weight_tail: ``[q + 1]`` in the weight metric, q = min(K, N).
        activation_tail: ``[q + 1]`` in the metric of the site's inputs; None without statistics.
        input_tail: ``[K + 1]`` variance of the inputs that their first principal components leave;
            None without statistics, and for a stack, which reads several inputs.
    """

    weight_tail: Float64
    activation_tail: Float64 | None
    input_tail: Float64 | None


def spectrum(site: LinearSite, known: Known) -> Spectrum:
    """Decompose the weight of ``site`` in both metrics; keeps only the spectra."""
    weight = site.weight.array()
    weight_tail = decompose(SVD(), weight, known).tail
    if evidence_in(known) == "none":
        return Spectrum(weight_tail, None, None)
    activation_tail = decompose(ASVD(), weight, known).tail
    return Spectrum(weight_tail, activation_tail, None if site.weight.stacked else _inputs(known))


def _inputs(known: Known) -> Float64:
    (stats,) = known
    assert stats is not None
    # The rows of the root are the principal axes, each as long as its standard deviation.
    return tail_of(np.sort(np.sum(stats.root**2, axis=1))[::-1])
