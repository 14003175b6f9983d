"""Prices of weights, and what allocators make of any prices that never fall with the rank."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress_onnx.graph_passes.allocation import ALLOCATORS, Candidate, get_allocator
from compress_onnx.graph_passes.allocation.least_damage import least_damage
from compress_onnx.graph_passes.allocation.price import LinearPrice, TabulatedPrice
from compress_onnx.graph_passes.allocation.uniform import uniform


def eighths(low, high):
    """Numbers whose sums are exact, so that equal and nearly equal prices are told apart."""
    return st.integers(8 * low, 8 * high).map(lambda number: number / 8)


steps = eighths(0, 3)


@st.composite
def priced(draw, most=5):
    """Candidates of 6 to 16 features with prices of their own: steps, plateaus, jumps."""
    candidates = []
    for index in range(draw(st.integers(1, most))):
        k, n = draw(st.tuples(st.integers(6, 16), st.integers(6, 16)))
        ranks = tuple(range(2, min(k, n) + 1, 2))
        rises = draw(st.lists(steps, min_size=len(ranks), max_size=len(ranks)))
        prices = tuple(float(p) for p in 0.5 + np.cumsum(rises))
        falls = draw(st.lists(steps, min_size=min(k, n), max_size=min(k, n)))
        damage = np.append(np.cumsum(falls)[::-1], 0.0)
        dense = draw(eighths(1, 12))
        price = TabulatedPrice(dense, ranks, prices)
        candidates.append(Candidate(str(index), k, n, damage=damage, quoted=price))
    return candidates


def spent(candidates, ranks):
    prices = ((c.price, ranks[c.key]) for c in candidates)
    return sum(p.dense if rank is None else p.at(rank) for p, rank in prices)


def lost(candidates, ranks):
    return sum(0.0 if ranks[c.key] is None else c.damage[ranks[c.key]] for c in candidates)


def sizes(candidate):
    """``(price, damage)`` of every size that the rules allow."""
    ranks = sorted({1, *range(2, candidate.max_rank + 1, 2)})
    paying = [rank for rank in ranks if candidate.pays(rank)]
    factored = [(candidate.price.at(rank), candidate.damage[rank]) for rank in paying]
    return [(candidate.price.dense, 0.0), *factored]


def choices(candidates):
    """``[n, 2]`` summed price and damage of every choice of sizes."""
    sums = np.zeros((1, 2))
    for candidate in candidates:
        sums = (sums[:, None] + np.array(sizes(candidate))).reshape(-1, 2)
    return sums


def least(candidates, budget):
    """The least damage within the budget, by trying everything; infinite where nothing fits."""
    tried = choices(candidates)
    return tried[tried[:, 0] <= budget + 1e-9, 1].min(initial=np.inf)


class TestPrices:
    @given(st.integers(1, 50), st.integers(0, 9), st.integers(1, 40))
    def test_linear_prices_are_found_back_by_their_rank(self, per_rank, fixed, rank):
        price = LinearPrice(1e6, per_rank, fixed)
        assert price.at(rank) == fixed + per_rank * rank
        assert price.rank_within(price.at(rank)) == rank

    @given(priced())
    def test_a_tabulated_rank_is_the_largest_within_the_limit(self, candidates):
        for candidate in candidates:
            price = candidate.price
            for limit in (*price.prices, 0.9 * price.prices[-1], 1e9):
                rank = price.rank_within(limit)
                assert price.at(rank) <= max(limit, price.prices[0]) + 1e-9
                assert rank == price.ranks[-1] or price.at(rank + 0.01) > limit - 1e-9

    def test_below_the_table_the_largest_rank_of_the_least_price_counts(self):
        price = TabulatedPrice(9.0, (8, 16, 24, 32), (2.0, 2.0, 2.0, 4.0))
        assert price.rank_within(1.0) == 24
        assert price.rank_within(3.0) == 28
        assert price.rank_within(5.0) == 32
        assert [price.at(rank) for rank in (1, 8, 28, 40)] == [2.0, 2.0, 3.0, 4.0]

    def test_noise_is_straightened(self):
        price = TabulatedPrice.fit(9.0, (8, 16, 24, 32), (2.0, 5.0, 3.0, 6.0))
        assert price.prices == (2.0, 4.0, 4.0, 6.0)

    @given(st.lists(st.floats(0, 10), min_size=1, max_size=12))
    def test_what_is_measured_never_falls_and_keeps_its_sum(self, measured):
        price = TabulatedPrice.fit(1.0, tuple(range(1, len(measured) + 1)), measured)
        assert all(a <= b for a, b in pairwise(price.prices))
        assert sum(price.prices) == pytest.approx(sum(measured), abs=1e-9)


class TestAnyPrices:
    @given(candidates=priced(), share=st.floats(0.1, 1.0))
    def test_the_least_damage_keeps_the_budget(self, candidates, share):
        ranks = least_damage(candidates, share, 2)
        budget = share * sum(c.price.dense for c in candidates)
        floor = sum(min(price for price, _ in sizes(c)) for c in candidates)
        assert spent(candidates, ranks) <= max(budget, floor) + 1e-9
        assert all(ranks[c.key] is None or c.pays(ranks[c.key]) for c in candidates)

    @given(candidates=priced(most=3), share=st.floats(0.2, 1.0))
    def test_it_is_optimal_but_for_one_step(self, candidates, share):
        ranks = least_damage(candidates, share, 2)
        reached, taken = lost(candidates, ranks), spent(candidates, ranks)
        assert reached >= least(candidates, taken) - 1e-9
        largest = max(c.price.dense for c in candidates)
        assert reached <= least(candidates, taken - largest) + 1e-9

    @given(candidates=priced(most=3))
    def test_it_is_optimal_at_every_corner_of_the_hull(self, candidates):
        points = sorted(map(tuple, choices(candidates)))
        total = sum(c.price.dense for c in candidates)
        for price, damage in corners(points):
            ranks = least_damage(candidates, (price + 1e-9) / total, 2)
            assert lost(candidates, ranks) == pytest.approx(damage, abs=1e-6)

    @given(candidates=priced(), share=st.floats(0.1, 1.0))
    def test_uniform_exceeds_the_budget_only_by_least_ranks(self, candidates, share):
        ranks = uniform(candidates, share, 2)
        total = sum(c.price.dense for c in candidates)
        stuck = [c for c in candidates if c.price.at(1) >= c.price.dense]
        assert all(ranks[c.key] is None for c in stuck)
        least_prices = sum(c.price.at(1) for c in candidates if c not in stuck)
        stuck_prices = sum(c.price.dense for c in stuck)
        assert spent(candidates, ranks) <= share * total + least_prices + stuck_prices + 1e-9

    def test_uniform_makes_up_for_a_weight_that_does_not_gain(self):
        gaining = [
            Candidate(str(i), 100, 100, quoted=LinearPrice(10.0, 0.1, 0.0)) for i in range(4)
        ]
        slow = Candidate("slow", 100, 100, quoted=TabulatedPrice(10.0, (8, 40), (10.5, 30.0)))
        ranks = uniform([*gaining, slow], 0.5, 1)
        assert ranks["slow"] is None
        assert {ranks[c.key] for c in gaining} == {37, 38}
        assert 24.8 < spent([*gaining, slow], ranks) <= 25

    def test_factors_are_never_larger_than_the_weight_however_fast(self):
        fast = Candidate(
            "w", 16, 16, damage=np.linspace(1, 0, 17), quoted=TabulatedPrice(9.0, (2,), (0.1,))
        )
        for name in ALLOCATORS:
            for share in (0.1, 0.5, 1.0):
                rank = get_allocator(name)([fast], share, 2)["w"]
                assert rank is None or rank * 32 < 16 * 16

    def test_a_plateau_is_used_up_to_its_end(self):
        stairs = TabulatedPrice(8.0, (2, 4, 6), (3.0, 3.0, 3.0))
        candidate = Candidate("w", 16, 16, damage=np.linspace(1, 0, 17), quoted=stairs)
        assert least_damage([candidate], 0.5, 2) == {"w": 6}
        assert uniform([candidate], 0.5, 2) == {"w": 6}


def corners(points):
    """The lower convex hull of points sorted by their first coordinate."""
    hull = []
    for point in points:
        if hull and point[1] >= hull[-1][1]:
            continue
        while len(hull) > 1 and not _turns_left(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _turns_left(a, b, c):
    return (b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1]) > 1e-9
