"""What each site's weight would lose at every rank: the facts behind a choice of ranks."""

from __future__ import annotations

from dataclasses import dataclass

from graph_passes.factorization import ActivationStats
from graph_passes.factorization.base import Float64
from graph_passes.factorization.projection import project
from graph_passes.factorization.stack import decompose
from graph_passes.factorization.svd import SVD
from graph_passes.sites import LinearSite


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Relative squared error at each rank, of the optimum in two metrics.

    Attributes:
        weight_tail: ``[q + 1]`` in the weight metric, q = min(K, N).
        activation_tail: ``[q + 1]`` in the metric of the site's inputs; None without statistics.
    """

    weight_tail: Float64
    activation_tail: Float64 | None


def spectrum(site: LinearSite, stats: ActivationStats | None) -> Spectrum:
    """Decompose the weight of ``site`` in both metrics; keeps only the spectra."""
    weight = site.weight.array()
    if site.weight.stacked:
        return Spectrum(decompose(SVD(), weight, None).tail, None)
    activation = None if stats is None else project(weight, stats.root).tail
    return Spectrum(project(weight).tail, activation)
