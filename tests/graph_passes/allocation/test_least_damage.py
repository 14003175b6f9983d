from itertools import product

import numpy as np
import pytest

from compress_onnx.graph_passes.allocation import Candidate
from compress_onnx.graph_passes.allocation.least_damage import least_damage, multiplier
from compress_onnx.graph_passes.errors import RequestError

MULTIPLE = 2


def candidates(seed, count=3):
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        k, n = rng.integers(6, 13, 2)
        spectrum = np.sort(rng.gamma(0.3, 1.0, min(k, n)))[::-1] * rng.uniform(0.1, 10)
        tail = np.concatenate([np.cumsum(spectrum[::-1])[::-1], [0.0]])
        found.append(Candidate(str(i), int(k), int(n), damage=tail))
    return found


def cost(candidate, rank):
    return candidate.dense if rank is None else rank * candidate.cost


def damage(candidate, rank):
    return 0.0 if rank is None else candidate.damage[rank]


def summed(measure, found, ranks):
    return sum(measure(candidate, ranks[candidate.key]) for candidate in found)


def exhaustive(found, budget):
    """The least damage that any choice within the budget does."""
    menus = []
    for c in found:
        ranks = [r for r in (1, *range(MULTIPLE, c.max_rank + 1, MULTIPLE)) if r * c.cost < c.dense]
        menus.append([*ranks, None])
    keys = [c.key for c in found]
    choices = (dict(zip(keys, choice, strict=True)) for choice in product(*menus))
    return min(summed(damage, found, c) for c in choices if summed(cost, found, c) <= budget)


@pytest.mark.parametrize("seed", range(20))
def test_optimal_at_the_budget_that_it_spends(seed):
    found = candidates(seed)
    total = sum(c.dense for c in found)
    for share in (0.5, 0.7, 0.9):
        ranks = least_damage(found, share, MULTIPLE)
        smallest = sum(c.cost for c in found)
        spent = summed(cost, found, ranks)
        reached = summed(damage, found, ranks)
        assert spent <= max(share * total, smallest)
        assert reached >= exhaustive(found, spent) - 1e-12
        # One step of one weight is all that a greedy choice can be short of.
        largest = max(c.dense for c in found)
        assert reached <= exhaustive(found, max(spent - largest, smallest)) + 1e-12


def test_exact_at_every_budget_where_all_steps_are_convex_and_cost_the_same():
    tail = np.array([9.0, 6, 4, 2.5, 1.2, 0, 0])
    found = [Candidate(str(i), 30, 6, damage=tail * scale) for i, scale in enumerate((1, 10, 3))]
    for budget in range(3 * 36, 541, 18):
        ranks = least_damage(found, (budget + 0.5) / 540, 1)
        menus = product([1, 2, 3, 4, None], repeat=3)
        choices = (dict(zip("012", menu, strict=True)) for menu in menus)
        best = min(summed(damage, found, c) for c in choices if summed(cost, found, c) <= budget)
        assert summed(damage, found, ranks) == pytest.approx(best)


def test_a_weight_that_needs_all_stays_dense():
    flat = np.linspace(100.0, 0.0, 9)
    steep = np.array([1.0, 1e-3, *[1e-6] * 6, 0.0])
    ranks = least_damage(
        [Candidate("flat", 8, 8, damage=flat), Candidate("steep", 8, 8, damage=steep)], 0.7, 1
    )
    assert ranks["flat"] is None
    assert ranks["steep"] is not None


def test_equal_bargains_follow_the_order_of_candidates():
    tail = np.linspace(8.0, 0.0, 9)
    found = [Candidate(name, 16, 8, damage=tail) for name in ("b", "a")]
    first = least_damage(found, 0.5, 1)
    assert first == least_damage(found, 0.5, 1)
    assert cost(found[0], first["b"]) >= cost(found[1], first["a"])


def test_needs_damage():
    with pytest.raises(RequestError, match="uniform"):
        least_damage([Candidate("a", 8, 8)], 0.5, 1)


@pytest.mark.parametrize("seed", range(10))
def test_the_multiplier_is_what_one_more_step_saves_at_best(seed):
    found = candidates(seed)
    ranks = least_damage(found, 0.6, MULTIPLE)
    best = 0.0
    for c in found:
        if ranks[c.key] is None:
            continue
        larger = [r for r in range(ranks[c.key] + 1, c.max_rank + 1) if r % MULTIPLE == 0]
        larger = [r for r in larger if r * c.cost < c.dense]
        for rank in [*larger, None]:
            saved = damage(c, ranks[c.key]) - damage(c, rank)
            best = max(best, saved / (cost(c, rank) - cost(c, ranks[c.key])))
    assert multiplier(found, ranks, MULTIPLE) == pytest.approx(best)
    assert best > 0


def test_the_multiplier_falls_as_the_budget_rises_and_is_nothing_at_its_end():
    found = candidates(3, count=6)
    values = [
        multiplier(found, least_damage(found, share, MULTIPLE), MULTIPLE)
        for share in (0.4, 0.6, 0.8, 1.0)
    ]
    assert values == sorted(values, reverse=True)
    assert values[-1] == 0


def test_nothing_is_known_of_a_multiplier_without_damage():
    plain = [Candidate("a", 8, 8), Candidate("b", 8, 8)]
    assert multiplier(plain, {"a": 2, "b": None}, MULTIPLE) is None
