"""Which siblings to factor with one ``down``: those that lose less that way, at equal parameters.

Factored apart, at the ranks of a plan, siblings keep P = Σ rᵢ·(K + Nᵢ) parameters and do the damage
Σ dᵢ. Joined (:mod:`graph_passes.rewriting.join_siblings`), P buys the rank P / (K + ΣNᵢ), a higher
one, of which every sibling uses all: good where the same directions of the input matter to them,
bad where one matters far more than the others. So the joint factorization is made, and its damage
measured: that of an error Δᵢ is the energy of Δᵢ in the metric of sibling i, which is what
``gauss-newton`` and ``asvd`` minimize for a weight on its own.

Rules:

1. Only siblings that the plan factors are compared; a sibling that had better stay dense does.
2. Groups grow pair by pair, the best pair first; the whole family is tried as well.
3. A group has to save :data:`MARGIN` of the damage: a prediction is no more exact than that.
4. Siblings stay apart, and :func:`why_apart` says why, where ranks go by measured sensitivity
   (measured one site at a time), where one rank is asked for everywhere, where the budget is not of
   parameters (equal parameters are then not equal cost), and where factors are rounded for the file
   (the damage of rounding is not in the comparison).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from compress_onnx.graph_passes.allocation import Damage, get_allocator, round_rank
from compress_onnx.graph_passes.factorization import ActivationStats, Method
from compress_onnx.graph_passes.factorization.gauss_newton import GaussNewton
from compress_onnx.graph_passes.planning.decompositions import Decompositions
from compress_onnx.graph_passes.planning.plan import CompressionPlan
from compress_onnx.graph_passes.planning.request import QUANTITIES, CompressionSpec
from compress_onnx.graph_passes.sites.families import families
from compress_onnx.graph_passes.sites.linear_site import LinearSite

MARGIN = 0.1
"""Share of the damage that sharing has to save."""


@dataclass(frozen=True)
class SharedGroup:
    """Siblings that are to share one ``down``, and what that does.

    Attributes:
        sites: their names, in graph order.
        ratio: their damage together over their damage apart, at equal parameters.
    """

    sites: tuple[str, ...]
    ratio: float


@dataclass(frozen=True)
class _Block:
    """Siblings that are factored together: so many parameters, so much damage."""

    sites: tuple[LinearSite, ...]
    parameters: int
    damage: float


def why_apart(request: CompressionSpec) -> str | None:
    """Why no siblings can share a factor, whatever they lose (rule 4); None where they can.

    Args:
        request: with nothing left open.
    """
    if request.rank is not None:
        return "one rank is asked for everywhere"
    if request.budget != "params":
        return f"the budget is one of {QUANTITIES[request.budget]}, not of parameters"
    if request.store != "same":
        return f"factors are stored as {request.store}"
    if get_allocator(request.allocation).damage == "sensitivity":
        return "sensitivity is measured one site at a time"
    return None


def shared_groups(
    sites: Sequence[LinearSite],
    plan: CompressionPlan,
    method: Method,
    decompositions: Decompositions,
    *,
    damage: Damage,
) -> list[SharedGroup]:
    """The groups of ``sites`` that had better share a factor.

    Args:
        sites: all sites of the model.
        plan: what they become on their own.
        method: how they are factored.
        decompositions: of the weights, made with gradients for methods and damages that need them.
        damage: what the plan's ranks go by.
    """
    by = GaussNewton() if damage == "gauss-newton" and not method.needs_gradients else method
    joiner = _Joiner(by, decompositions)
    ranks = {site.site: site.rank for site in plan.factored if site.rank is not None}
    groups: list[SharedGroup] = []
    for family in families([site for site in sites if site.name in ranks]):
        apart = {site.name: joiner.alone(site, ranks[site.name]) for site in family}
        for block in joiner.best(list(apart.values())):
            if len(block.sites) > 1:
                names = tuple(site.name for site in family if site in block.sites)
                separate = sum(apart[name].damage for name in names)
                groups.append(SharedGroup(names, block.damage / separate))
    return groups


class _Joiner:
    """Joins blocks of siblings and measures the damage."""

    def __init__(self, method: Method, decompositions: Decompositions) -> None:
        self._method = method
        self._decompositions = decompositions

    def alone(self, site: LinearSite, rank: int) -> _Block:
        """``site`` as the plan has it."""
        cost = site.in_features + site.out_features
        found = self._decompositions.of(self._method, [site], rank)
        return _Block((site,), rank * cost, found.energy * float(found.tail[rank]))

    def best(self, apart: Sequence[_Block]) -> list[_Block]:
        """The blocks that do the least damage, of those that rule 2 tries."""
        grown = self._grown(list(apart))
        if len(apart) == 2:
            return grown
        whole = self._join(*apart)
        if whole.damage < (1 - MARGIN) * sum(block.damage for block in grown):
            return [whole]
        return grown

    def _grown(self, blocks: list[_Block]) -> list[_Block]:
        while True:
            pairs = [(a, b, self._join(a, b)) for a, b in combinations(blocks, 2)]
            saved = [(a.damage + b.damage - ab.damage, a, b, ab) for a, b, ab in pairs]
            good = [s for s in saved if s[0] > MARGIN * (s[1].damage + s[2].damage)]
            if not good:
                return blocks
            _, a, b, joined = max(good, key=lambda s: s[0])
            blocks = [joined, *(block for block in blocks if block is not a and block is not b)]

    def _join(self, *blocks: _Block) -> _Block:
        sites = tuple(site for block in blocks for site in block.sites)
        parameters = sum(block.parameters for block in blocks)
        rows, columns = sites[0].in_features, sum(site.out_features for site in sites)
        # Not rounded to a multiple: what rounding leaves over is spent on other weights.
        rank = round_rank(parameters / (rows + columns), 1, min(rows, columns))
        return _Block(sites, parameters, self._damage(sites, rank))

    def _damage(self, sites: Sequence[LinearSite], rank: int) -> float:
        weights = [site.weight.array().astype(np.float64) for site in sites]
        stats = [self._decompositions.stats.get(site.name) for site in sites]
        known = [seen for seen in stats if seen is not None]
        together = ActivationStats.beside(known) if len(known) == len(stats) else None
        joint = self._method.decompose(np.hstack(weights), together)
        product = joint.factorize(rank).product()
        ends = np.cumsum([weight.shape[1] for weight in weights])[:-1]
        errors = [w - p for w, p in zip(weights, np.split(product, ends, axis=1), strict=True)]
        return sum(
            self._method.decompose(error, seen).energy
            for error, seen in zip(errors, stats, strict=True)
        )
