"""How each weight is to be factored, or why it has to stay dense, whatever the ranks are.

Calibration cannot look everywhere: a site inside an If, Loop or Scan has no activation statistics;
a weight on the left has statistics, but no gradients. A method that goes by the missing evidence
leaves such a weight dense or, where the request lets other methods stand in
(:mod:`graph_passes.planning.strategy`), has it factored by one of these. Either way the reason says
which evidence is missing, and where; also how many matrices of a stack no row of the calibration
data reached, which have plain SVD.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from compress_onnx.graph_passes.factorization import ActivationStats, Known, make_method
from compress_onnx.graph_passes.factorization.stack import knows_enough
from compress_onnx.graph_passes.planning.evidence import (
    evidence_in,
    lack_of,
    statistics_of,
    suffices,
)
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.planning.strategy import best_method
from compress_onnx.graph_passes.sites.grouping import WeightGroups
from compress_onnx.graph_passes.sites.linear_site import LinearSite


@dataclass(frozen=True)
class Choice:
    """How a weight is to be factored.

    Attributes:
        method: None where there is too little evidence, and no other method may stand in.
        lacks: which evidence there is none of; "" where there is all that the request goes by.
        unreached: how many matrices of a stack the method knows too little about.
        dense: why the weight stays as it is; None where it is factored.
    """

    method: MethodSpec | None
    lacks: str = ""
    unreached: int = 0
    dense: str | None = None


Choices = Mapping[str, Choice]
"""What is chosen for each weight, by its key."""


def open_groups(groups: WeightGroups, choices: Choices) -> WeightGroups:
    """The weights that nothing keeps dense so far."""
    return {key: sites for key, sites in groups.items() if choices[key].dense is None}


def choose(
    sites: Sequence[LinearSite],
    request: CompressionSpec,
    stats: Mapping[str, ActivationStats],
    unselected: Mapping[str, str | None],
) -> Choice:
    """Choose for the weight that ``sites`` share.

    Args:
        sites: that share it.
        request: with nothing left open.
        stats: activation statistics by matrix name.
        unselected: by site name, why nobody asked for it.
    """
    choice = _by_evidence(request, sites, statistics_of(sites, stats))
    return replace(choice, dense=_why_dense(sites, unselected, choice))


def _by_evidence(request: CompressionSpec, sites: Sequence[LinearSite], known: Known) -> Choice:
    """The method that was asked for, or the one that stands in for it."""
    method, evidence = make_method(request.method.name, request.method.options), evidence_in(known)
    if suffices(evidence, method):
        return Choice(request.method, unreached=_unreached(request.method, known))
    lacks = lack_of("gradients" if method.needs_gradients else "activation statistics", sites)
    if not request.stand_ins:
        return Choice(None, lacks)
    stand_in = best_method(evidence)
    return Choice(stand_in, lacks, _unreached(stand_in, known))


def _unreached(spec: MethodSpec, known: Known) -> int:
    method = make_method(spec.name, spec.options)
    return sum(not knows_enough(method, stats) for stats in known)


def _why_dense(
    sites: Sequence[LinearSite], unselected: Mapping[str, str | None], choice: Choice
) -> str | None:
    for site in sites:
        if unselected[site.name]:
            return f"shares its weight with {site.name}, which is not selected"
    if choice.method is None:
        return f"{choice.lacks}: use --method svd"
    if not np.isfinite(sites[0].weight.array().astype(np.float32, copy=False)).all():
        return "the weight has NaN or infinite values"
    return None


def bias_parameters(factored: WeightGroups, choices: Choices) -> dict[str, int]:
    """What the bias correction of each factored site adds to the file: new bias less old bias.

    An old bias goes only when all its readers get a new one; the last of them takes it away.
    """
    sites = [s for key in factored for s in factored[key] if _corrects_bias(choices[key], s)]
    added = {site.name: site.corrected_bias for site in sites}
    last = {site.bias.value: site for site in sites if site.bias is not None}
    corrected = {site.bias.node for site in sites if site.bias is not None}
    for value, site in last.items():
        if value.const_value is None or value.is_graph_output():
            continue
        if all(node in corrected for node, _ in value.uses()):
            added[site.name] -= value.const_value.size
    return added


def _corrects_bias(choice: Choice, site: LinearSite) -> bool:
    spec = choice.method
    assert spec is not None
    return make_method(spec.name, spec.options).corrects_bias and site.corrected_bias > 0
