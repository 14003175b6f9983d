"""The smallest share within a drop is found in few trials, by what damage predicts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress_onnx.pipeline.compress.share_search import GRID, STEPS, ShareSearch

ALLOWED = 0.01


def tried(loss, damage, per_damage=None):
    """The shares that are tried where the loss of each is known."""
    search = ShareSearch(ALLOWED, 0.0, damage, per_damage)
    shares = []
    while (share := search.next()) is not None:
        shares.append(share)
        search.tell(share, loss(share), within=loss(share) <= ALLOWED)
    return shares


def smallest(loss, shares=tuple(n / GRID for n in range(1, GRID + 1))):
    return min((share for share in shares if loss(share) <= ALLOWED), default=1.0)


def test_without_prediction_shares_are_bisected():
    assert tried(lambda share: 0.03 * (1 - share), None) == [0.5, 0.75, 0.625, 0.6875]


def test_a_true_prediction_finds_the_share_at_once():
    def loss(share):
        return 0.3 * (1 - share) ** 2

    damage = lambda share: 70 * (1 - share) ** 2  # noqa: E731
    assert tried(loss, damage) == [0.5, smallest(loss)]
    assert tried(loss, damage, per_damage=0.3 / 70) == [smallest(loss)]


@given(st.floats(1, 4), st.floats(0.5, 2), st.floats(0.02, 2), st.one_of(st.none(), st.just(5e-4)))
def test_a_wrong_prediction_is_corrected(power, ratio, scale, per_damage):
    """The loss is another power of what is predicted, at another scale."""

    def loss(share):
        return scale * (1 - share) ** (power * ratio)

    shares = tried(loss, lambda share: 70 * (1 - share) ** power, per_damage)
    assert len(shares) <= STEPS
    assert len(set(shares)) == len(shares)
    assert smallest(loss) <= smallest(loss, shares) <= smallest(loss) + 3 / GRID


def test_where_all_shares_lose_too_much_the_largest_is_the_last():
    found = tried(lambda share: 0.5 * (share < 1), lambda share: 1 - share)
    assert found[:2] == [0.5, 31 / GRID]
    assert all(share < 1 for share in found)


def test_a_share_that_cannot_be_built_loses_everything():
    found = tried(lambda share: float("inf") if share < 0.8 else 0.0, lambda share: 1 - share)
    assert smallest(lambda share: 1.0 if share < 0.8 else 0.0, found) < 1


def test_what_recovery_may_make_up_for_is_beyond_the_drop():
    search = ShareSearch(ALLOWED, 0.0, lambda share: 1 - share, 0.02)
    assert search.next() == 0.5
    search.tell(0.5, 0.01, within=True)
    share = search.beyond(1.25)
    assert 0.02 * (1 - share) == pytest.approx(1.25 * ALLOWED, rel=0.06)
    assert share < 0.5
    assert ShareSearch(ALLOWED).beyond(1.25) is None


def test_what_the_numbers_lose_is_no_matter_of_shares():
    search = ShareSearch(ALLOWED, 0.004, lambda share: 1 - share, 0.02)
    share = search.next()
    assert 0.02 * (1 - share) + 0.004 <= ALLOWED < 0.02 * (1 - share + 1 / GRID) + 0.004
    search.tell(share, 0.02 * (1 - share) + 0.004, within=True)
    assert search.loss_per_damage == pytest.approx(0.02)
    assert search.next() is None
