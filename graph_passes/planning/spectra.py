"""What each site's weight would lose at every rank: the facts behind a choice of ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compress_onnx.graph_passes.arrays import Float64
from compress_onnx.graph_passes.factorization import Known
from compress_onnx.graph_passes.factorization.asvd import ASVD
from compress_onnx.graph_passes.factorization.projection import squared_spectrum, tail_of
from compress_onnx.graph_passes.factorization.stack import decompose
from compress_onnx.graph_passes.factorization.svd import SVD
from compress_onnx.graph_passes.planning.evidence import evidence_in
from compress_onnx.graph_passes.sites.linear_site import LinearSite


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
    """The spectra of the weight of ``site`` in both metrics, and of its inputs."""
    weight, seen = site.weight.array(), evidence_in(known) != "none"
    if site.weight.stacked:
        tails = [decompose(by, weight, known).tail for by in (SVD(), ASVD())[: 1 + seen]]
        return Spectrum(tails[0], tails[1] if seen else None, None)
    weight_tail = tail_of(squared_spectrum(weight))
    (stats,) = known
    if stats is None:
        return Spectrum(weight_tail, None, None)
    return Spectrum(
        weight_tail,
        tail_of(squared_spectrum(weight, stats.covariance)),
        tail_of(np.maximum(np.linalg.eigvalsh(stats.covariance)[::-1], 0.0)),
    )
