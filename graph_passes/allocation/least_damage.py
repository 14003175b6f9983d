"""The least summed damage that the budget buys.

Each weight offers some sizes: rank 1, the multiples of ``multiple`` while they pay, and the dense
weight itself, which does no damage. A size that does more damage than one that takes no more is
left out: what remains rises in cost and never in damage, however crooked the prices are. On the
lower convex hull of (cost, damage) every step buys less for its cost than the one before, so
taking the steps of all weights in the order of what they buy solves

    min Σ damage   subject to   Σ cost <= budget

exactly at each budget that the order passes through. What is left over when the next step does not
fit goes to the best step that does, on the hull or off it.

Rules:

1. A weight that is worth most whole stays dense (None).
2. The budget is kept, unless not even the cheapest size of every weight fits into it.
3. Equal bargains are decided by the candidates' order, so the result is deterministic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from compress_onnx.graph_passes.allocation.base import Candidate
from compress_onnx.graph_passes.errors import RequestError


@dataclass(frozen=True)
class _Size:
    """One size of one weight and its price; ``rank`` None is the dense weight."""

    rank: int | None
    cost: float
    damage: float


def least_damage(
    candidates: Sequence[Candidate], share: float, multiple: int
) -> Mapping[str, int | None]:
    """Share ``share`` of the candidates' dense prices out; see the module's rules.

    Raises:
        RequestError: a candidate comes without its damage.
    """
    budget = share * sum(candidate.price.dense for candidate in candidates)
    menus = {c.key: _sizes(c, multiple) for c in candidates}
    chosen = {key: menu[0] for key, menu in menus.items()}
    left = budget - sum(size.cost for size in chosen.values())
    for key, size in _bargains(menus):
        extra = size.cost - chosen[key].cost
        if extra > left:
            break
        chosen[key] = size
        left -= extra
    _spend(menus, chosen, left)
    return {key: size.rank for key, size in chosen.items()}


def least_possible(candidates: Sequence[Candidate], budget: int) -> float:
    """The least summed damage that ``budget`` parameters can buy, at any ranks.

    The last step that does not fit is taken in part: that is the optimum of the linear relaxation,
    so no choice of ranks is below it.

    Args:
        candidates: with the damage of each.
        budget: at least the parameters of rank 1 of every candidate.

    Raises:
        RequestError: a candidate comes without its damage.
    """
    menus = {c.key: _sizes(c, 1) for c in candidates}
    chosen = {key: menu[0] for key, menu in menus.items()}
    damage = sum(size.damage for size in chosen.values())
    left = float(budget - sum(size.cost for size in chosen.values()))
    for key, size in _bargains(menus):
        taken = max(min(left, size.cost - chosen[key].cost), 0.0)
        damage -= taken * _gain(chosen[key], size)
        left -= taken
        chosen[key] = size
    return max(damage, 0.0)


def multiplier(
    candidates: Sequence[Candidate], ranks: Mapping[str, int | None], multiple: int
) -> float | None:
    """The damage that one more unit of the budget would prevent, at ``ranks``.

    That is the multiplier of the module's problem, by which whatever else costs of the same budget
    can be judged. 0 where all weights are dense; None where no candidate has its damage.
    """
    known = [candidate for candidate in candidates if candidate.damage is not None]
    gains = [0.0]
    for candidate in known:
        rank, damage = ranks[candidate.key], candidate.damage
        if rank is not None and damage is not None:
            taken = _Size(rank, candidate.price.at(rank), float(damage[rank]))
            sizes = _sizes(candidate, multiple)
            gains += [_gain(taken, size) for size in sizes if size.cost > taken.cost]
    return max(gains) if known else None


def _sizes(candidate: Candidate, multiple: int) -> list[_Size]:
    """From the cheapest size to the dense weight; rising in price, never in damage."""
    damage = candidate.damage
    if damage is None:
        raise RequestError(
            f"nobody knows what {candidate.key} loses at which rank: use the allocation uniform"
        )
    ranks = sorted({1, *range(multiple, candidate.max_rank + 1, multiple)})
    sizes = [
        _Size(rank, candidate.price.at(rank), float(damage[rank]))
        for rank in ranks
        if candidate.pays(rank)
    ]
    return _undominated([*sizes, _Size(None, candidate.price.dense, 0.0)])


def _undominated(sizes: Sequence[_Size]) -> list[_Size]:
    menu: list[_Size] = []
    for size in sorted(sizes, key=lambda size: (size.cost, size.damage)):
        if not menu or (size.cost > menu[-1].cost and size.damage <= menu[-1].damage):
            menu.append(size)
    return menu


def _hull(sizes: Sequence[_Size]) -> list[_Size]:
    """The sizes on the lower convex hull of (cost, damage)."""
    hull: list[_Size] = []
    for size in sizes:
        while len(hull) > 1 and _gain(hull[-1], size) >= _gain(hull[-2], hull[-1]):
            hull.pop()
        hull.append(size)
    return hull


def _gain(smaller: _Size, larger: _Size) -> float:
    """Damage that one more unit of the budget prevents."""
    return (smaller.damage - larger.damage) / (larger.cost - smaller.cost)


def _bargains(menus: Mapping[str, Sequence[_Size]]) -> list[tuple[str, _Size]]:
    """All steps along all hulls, the best first; steps of one weight keep their order."""
    steps = []
    for key, sizes in menus.items():
        hull = _hull(sizes)
        steps += [(_gain(a, b), key, b) for a, b in pairwise(hull)]
    steps.sort(key=lambda step: -step[0])
    return [(key, size) for _, key, size in steps]


def _spend(menus: Mapping[str, Sequence[_Size]], chosen: dict[str, _Size], left: float) -> None:
    """Spend what is ``left`` on the best steps that fit, in place."""
    while True:
        steps = [
            (_gain(chosen[key], size), key, size)
            for key, sizes in menus.items()
            for size in sizes
            if 0 < size.cost - chosen[key].cost <= left
        ]
        best = max(steps, key=lambda step: step[0], default=None)
        if best is None or best[0] <= 0:
            return
        _, key, size = best
        left -= size.cost - chosen[key].cost
        chosen[key] = size
