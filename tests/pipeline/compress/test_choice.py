"""What wins among trials with made-up times, what is on the front, and what is said about it."""

from __future__ import annotations

import numpy as np
import pytest

from compress_onnx.pipeline.compress.choice import Race, with_front
from compress_onnx.pipeline.recipe import OptimizeSpec
from compress_onnx.pipeline.results import Drop, Trial

ROUNDS = 60


def trial(name, drop=0.0, size=100, *, rival=False, family=None, speedup=None):
    return Trial(
        name=name,
        rival=rival,
        family=None if rival else family or "neurons",
        drop=Drop(quantity="d", value=drop),
        within=drop <= 0.01,
        size_bytes=size,
        speedup=speedup,
    )


def race(*entrants, noise=0.0, objective="latency", shapes=("",), original=10.0):
    """A race of ``(trial, milliseconds)``, of each shape; noise is of each round by itself."""
    rng = np.random.default_rng(3)
    trials = [trial("original", rival=True), *(entrant for entrant, _ in entrants)]
    ms = [np.broadcast_to(time, len(shapes)) for time in (original, *(t for _, t in entrants))]
    times = 1e6 * np.stack(ms, axis=-1)[:, None]  # [shapes, 1, trials]
    times = times * np.exp(noise * rng.standard_normal((len(shapes), ROUNDS, len(trials))))
    spec = OptimizeSpec(objective=objective)
    return Race(trials, times, spec, shapes=shapes).with_speeds("here")


RIVAL = trial("dynamic int8", 0.005, rival=True)
OURS = trial("half", 0.009)


def test_what_is_surely_faster_wins():
    choice = race((RIVAL, 5.0), (OURS, 4.0), noise=0.05).choose()
    assert (choice.fallback.name, choice.winner.name) == ("dynamic int8", "half")
    assert choice.gain.value == pytest.approx(1.25, rel=0.05)
    assert 1 < choice.gain.low < choice.gain.value
    assert choice.verdict(choice.winner, "x 1x8").startswith("half is 1.2")


def test_two_in_a_hundred_are_not_enough():
    choice = race((RIVAL, 5.0), (OURS, 4.95)).choose()
    assert choice.gain.low > 1
    assert choice.winner.name == "dynamic int8"
    assert "less than 1.02 is not worth it" in choice.verdict(choice.winner, "x 1x8")


def test_what_may_be_slower_does_not_win():
    choice = race((RIVAL, 5.0), (OURS, 4.7), noise=0.5).choose()
    assert choice.gain.value > 1.02
    assert choice.gain.low < 1
    assert choice.winner.name == "dynamic int8"
    assert "not sure: the interval begins at 0." in choice.verdict(choice.winner, "x 1x8")


def test_drift_that_hits_both_alike_leaves_the_winner_sure():
    entered = race((RIVAL, 5.0), (OURS, 4.7))
    drift = np.exp(np.random.default_rng(0).standard_normal((ROUNDS, 1)) / 50)
    choice = Race(entered.trials, entered.times * drift, entered.spec).choose()
    assert choice.winner.name == "half"


def test_what_loses_too_much_does_not_run_for_the_win():
    choice = race((RIVAL, 5.0), (trial("quarter", 0.2), 2.0)).choose()
    assert choice.best is None
    assert choice.winner.name == "dynamic int8"
    assert choice.verdict(choice.winner, "").startswith("nothing of ours stays within 0.01")


def test_what_was_not_tried_is_not_said_to_lose_too_much():
    choice = race((RIVAL, 5.0)).choose()
    assert choice.verdict(choice.winner, "") == (
        "nothing of ours was tried before the time was up: dynamic int8 it is"
    )


def test_the_smallest_needs_no_interval():
    small = trial("half", 0.009, size=50)
    choice = race((RIVAL, 1.0), (small, 99.0), noise=0.5, objective="size").choose()
    assert choice.winner.name == "half"
    assert "2.00 times as small as" in choice.verdict(choice.winner, "")


SHAPES = ("1x16", "8x128")


def at_two(*entrants, **settings):
    return race(*entrants, shapes=SHAPES, **settings)


def test_of_several_shapes_the_geometric_mean_decides():
    """One candidate is best at the one shape, another at the other, and in the sum of times."""
    short, long = trial("short", 0.009), trial("long", 0.009)
    entered = at_two(
        (RIVAL, (1.0, 100.0)),
        (short, (0.5, 105.0)),
        (long, (1.1, 80.0)),
        noise=0.01,
        original=(2.0, 200.0),
    )
    choice = entered.choose()
    assert choice.winner.name == "short"
    assert choice.gain.value == pytest.approx((2 * 100 / 105) ** 0.5, rel=0.01)
    assert dict(choice.gain.at) == pytest.approx({"1x16": 2.0, "8x128": 100 / 105}, rel=0.02)
    first_alone = Race(entered.trials, entered.times[:1], entered.spec).with_speeds("here")
    second_alone = Race(entered.trials, entered.times[1:], entered.spec).with_speeds("here")
    assert first_alone.choose().winner.name == "short"
    assert second_alone.choose().winner.name == "long"


def test_swapped_shapes_show_in_the_verdict():
    """The times of one candidate are those of the other shape: the mean alone cannot tell."""
    right = at_two((RIVAL, (1.0, 9.0)), (OURS, (0.8, 8.0)))
    swapped = right.times.copy()
    swapped[..., 2] = swapped[::-1, :, 2]
    wrong = Race(right.trials, swapped, right.spec, shapes=SHAPES).with_speeds("here").choose()
    assert wrong.gain.value == pytest.approx(right.choose().gain.value)
    assert "slower" not in right.choose().verdict(OURS, "x")
    assert "at 1x16 half is slower than dynamic int8" in wrong.verdict(OURS, "x")


def test_a_candidate_that_is_unsure_at_one_shape_does_not_win():
    entered = at_two((RIVAL, 5.0), (OURS, (5.0, 4.7)))
    assert entered.choose().winner.name == "half"
    noise = np.exp(0.5 * np.random.default_rng(2).standard_normal((ROUNDS, len(entered.trials))))
    unsure = np.stack([entered.times[0] * noise, entered.times[1]])
    choice = Race(entered.trials, unsure, entered.spec, shapes=SHAPES).choose()
    assert choice.gain.low < 1 < choice.gain.high
    assert choice.winner.name == "dynamic int8"


def test_trials_have_the_speed_at_each_shape():
    fast = next(t for t in at_two((OURS, (5.0, 2.5))).trials if t.name == "half")
    assert fast.speedup == pytest.approx(8**0.5)
    assert (fast.speedup_low, fast.speedup_high) == pytest.approx((8**0.5, 8**0.5))
    assert fast.speedup_at == {"1x16": 2, "8x128": 4}
    alone = next(t for t in race((OURS, 5.0)).trials if t.name == "half")
    assert (alone.speedup, alone.speedup_at, alone.timed_at) == (2, {}, "here")


def test_the_verdict_names_the_shape_where_the_winner_loses():
    choice = at_two((RIVAL, 5.0), (OURS, (2.0, 6.25))).choose()
    assert choice.verdict(choice.winner, "x").startswith(
        "half is 1.41 times as fast as dynamic int8, the best that there is without it "
        "(geometric mean: 2.50 at 1x16, 0.80 at 8x128); "
        "at 8x128 half is slower than dynamic int8 (0.8 times as fast)"
    )
    everywhere = at_two((RIVAL, 5.0), (OURS, (2.0, 4.0))).choose()
    assert "slower" not in everywhere.verdict(everywhere.winner, "x")


def test_a_rival_that_wins_may_be_slower_than_the_original():
    choice = at_two((RIVAL, (12.5, 2.0)), (OURS, (12.5, 2.0))).choose()
    told = choice.verdict(choice.winner, "x")
    assert told.startswith("dynamic int8 it is: half, the best of ours within 0.01, is 1.00 times")
    assert "(geometric mean: 1.00 at 1x16, 1.00 at 8x128)" in told
    assert told.endswith("at 1x16 dynamic int8 is slower than the original (0.8 times as fast)")


def test_where_nothing_of_ours_is_left_the_rival_is_looked_at_too():
    for entrants in [(), ((trial("quarter", 0.2), 2.0),)]:
        choice = at_two((RIVAL, (12.5, 2.0)), *entrants).choose()
        assert "at 1x16 dynamic int8 is slower" in choice.verdict(choice.winner, "x")


def test_the_smallest_is_not_judged_by_its_speed():
    small = trial("half", 0.009, size=50)
    choice = at_two((RIVAL, 1.0), (small, (0.5, 99.0)), objective="size").choose()
    assert choice.winner.name == "half"
    assert "slower" not in choice.verdict(choice.winner, "")


LOW = trial("neurons and low rank, 75.0%", 0.009, family="neurons and low rank")


def test_low_rank_that_was_not_worth_it_is_told_with_its_figure():
    choice = race((RIVAL, 9.0), (OURS, 5.0), (LOW, 8.0)).choose()
    assert choice.verdict(choice.winner, "x").endswith(
        "low rank was not worth it: the best within the drop is 1.25 times as fast as the "
        "original, half 2.00"
    )


def test_low_rank_that_won_is_not_called_useless():
    choice = race((RIVAL, 9.0), (OURS, 5.0), (LOW, 4.0)).choose()
    assert choice.winner.name == LOW.name
    assert "not worth it" not in choice.verdict(choice.winner, "x")


def test_low_rank_that_always_loses_too_much_is_told():
    beyond = trial("x", 0.3, family="neurons and low rank")
    choice = race((RIVAL, 9.0), (OURS, 5.0)).choose()
    told = choice.verdict(choice.winner, "x", [beyond])
    assert told.endswith("nothing of it that was tried stays within the drop")


def test_low_rank_that_was_not_tried_is_not_spoken_of():
    choice = race((RIVAL, 9.0), (OURS, 5.0)).choose()
    assert "low rank" not in choice.verdict(choice.winner, "x")


def test_the_front_is_what_none_beats():
    trials = [
        trial("original", 0.0, rival=True, speedup=1.0),
        trial("slower", 0.001, speedup=0.9),
        trial("good", 0.005, speedup=2.0),
        trial("as good", 0.005, speedup=2.0),
        trial("worse", 0.006, speedup=2.0),
        trial("fast", 0.05, speedup=3.0),
        trial("not timed", 0.0),
    ]
    marked = with_front(trials, OptimizeSpec())
    assert [t.name for t in marked if t.on_front] == ["original", "good", "as good", "fast"]


def test_the_front_of_sizes_needs_no_times():
    trials = [trial("a", 0.0, 100), trial("b", 0.1, 50), trial("c", 0.2, 60)]
    marked = with_front(trials, OptimizeSpec(objective="size"))
    assert [t.name for t in marked if t.on_front] == ["a", "b"]
