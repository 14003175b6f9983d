"""What is known about a weight: the statistics of the sites that share it, and what they allow.

Statistics go by the names of matrices
(:attr:`~graph_passes.sites.linear_site.LinearSite.matrices`), so that those of a stack lie beside
those of plain weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from compress_onnx.graph_passes.factorization import ActivationStats, Known, Method
from compress_onnx.graph_passes.sites.linear_site import LinearSite

EvidenceKind = Literal["none", "activations", "gradients"]


def statistics_of(sites: Sequence[LinearSite], stats: Mapping[str, ActivationStats]) -> Known:
    """What is known about each matrix of the weight that all ``sites`` share.

    Nothing where calibration could not look at one of the sites. A matrix of a stack that no row
    reached at some of them has the statistics of the others.
    """
    seen = [[stats.get(name) for name in site.matrices] for site in sites]
    if not all(any(found) for found in seen):
        return (None,) * sites[0].weight.matrices
    return tuple(_merged(matrix) for matrix in zip(*seen, strict=True))


def _merged(parts: Sequence[ActivationStats | None]) -> ActivationStats | None:
    known = [part for part in parts if part is not None]
    return ActivationStats.merge(known) if known else None


def evidence_in(known: Known) -> EvidenceKind:
    """The best evidence that there is about any matrix of a weight."""
    seen = [stats for stats in known if stats is not None]
    if any(stats.gradients is not None for stats in seen):
        return "gradients"
    return "activations" if seen else "none"


def suffices(evidence: EvidenceKind, method: Method) -> bool:
    """Whether ``method`` can factor a weight about which there is this ``evidence``."""
    if method.needs_gradients:
        return evidence == "gradients"
    return evidence != "none" or not method.needs_activations


def lack_of(evidence: str, sites: Sequence[LinearSite]) -> str:
    """That there is no ``evidence`` about a weight, in words, and where one of its ``sites`` is."""
    if any(site.nested for site in sites):
        where = "inside an If, Loop or Scan"
    elif any(site.on_left for site in sites):
        where = "for a weight on the left of its input"
    else:
        where = f"for {sites[0].name}"
    return f"no {evidence} {where}"
