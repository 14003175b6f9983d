"""Rank allocation: budgets hold, multiples hold, nothing depends on the order of a dict."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress_onnx.graph_passes.allocation import ALLOCATORS, Candidate, get_allocator, round_rank
from compress_onnx.graph_passes.errors import RequestError

sizes = st.integers(8, 600)
candidate_lists = st.lists(st.tuples(sizes, sizes), min_size=1, max_size=12).map(
    lambda shapes: [
        Candidate(f"w{i}", k, n, damage=(i + 1) * np.linspace(1, 0, min(k, n) + 1) ** 2)
        for i, (k, n) in enumerate(shapes)
    ]
)


@pytest.mark.parametrize("name", ALLOCATORS)
@given(candidates=candidate_lists, share=st.floats(0.2, 1.0), multiple=st.sampled_from([1, 4, 8]))
def test_the_budget_holds(name, candidates, share, multiple):
    ranks = get_allocator(name)(candidates, share, multiple)

    assert set(ranks) == {c.key for c in candidates}
    assert all(ranks[c.key] is None or 1 <= ranks[c.key] <= c.max_rank for c in candidates)
    # A rank of one is the least there is, even where the share is worth less.
    floor = sum(c.cost for c in candidates if ranks[c.key] == 1)
    spent = sum(c.dense if ranks[c.key] is None else ranks[c.key] * c.cost for c in candidates)
    assert spent <= share * sum(c.dense for c in candidates) + floor


@given(candidates=candidate_lists, share=st.floats(0.2, 0.9))
def test_uniform_stays_within_one_multiple_of_the_share(candidates, share):
    ranks = get_allocator("uniform")(candidates, share, 8)

    for c in candidates:
        wanted = share * c.dense / c.cost
        assert wanted - 8 < ranks[c.key] < wanted + 8 or ranks[c.key] == 1
        assert ranks[c.key] % 8 == 0 or ranks[c.key] < 8


def test_uniform_uses_what_rounding_leaves_over():
    square = [Candidate(f"w{i}", 128, 128) for i in range(16)]

    ranks = get_allocator("uniform")(square, 0.33, 8)

    assert set(ranks.values()) == {16, 24}
    spent = sum(ranks[c.key] * c.cost for c in square)
    total = sum(c.dense for c in square)
    assert 0.33 * total - 8 * 256 < spent <= 0.33 * total


@pytest.mark.parametrize(
    ("rank", "multiple", "expected"), [(21.3, 8, 16), (7.9, 8, 7), (0.2, 8, 1), (99.0, 1, 50)]
)
def test_round_rank(rank, multiple, expected):
    assert round_rank(rank, multiple, 50) == expected


def test_an_unknown_allocation_is_named():
    with pytest.raises(RequestError, match=r"'best'.*uniform"):
        get_allocator("best")
