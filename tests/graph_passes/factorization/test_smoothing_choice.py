"""What inputs are divided by: the predicted damage is the real one, and the least is taken."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress_onnx.graph_passes.factorization.rounding import InputRange, round_weight
from compress_onnx.graph_passes.factorization.smoothing import Reader, rounding_damage, smooth

K, N = 12, 7


def seen(rows: np.ndarray) -> InputRange:
    return InputRange(rows.min(axis=0), rows.max(axis=0), (rows**2).mean(axis=0))


def drawn(seed: int, spread: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, a weight, a moment; inputs reach ``exp(±spread)`` far."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((4000, K)) * np.exp(rng.uniform(-spread, spread, K))
    half = rng.standard_normal((N, N))
    return rows, rng.standard_normal((K, N)), half @ half.T


def measured(
    rows: np.ndarray, weight: np.ndarray, moment: np.ndarray, divisor: np.ndarray
) -> float:
    """The mean squared change of the outputs, by rounding for real."""
    scale = seen(rows).divided(divisor).scale()
    step, zero = float(scale.scale), float(scale.zero_point)
    integers = np.clip(np.rint(rows / divisor / step) + zero, 0, 255) - zero
    rounded = round_weight(divisor[:, None] * weight)
    change = step * integers @ (rounded.numbers * rounded.scale.astype(float)) - rows @ weight
    return float(np.einsum("rn,nm,rm->", change, moment, change)) / len(rows)


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_predicted_damage_is_the_measured_one(spread: float, power: float) -> None:
    ratios = []
    for seed in range(12):
        rows, weight, moment = drawn(seed, spread)
        divisor = seen(rows).magnitude ** power
        predicted = rounding_damage(seen(rows), [Reader.of(weight, moment)], divisor)
        ratios.append(measured(rows, weight, moment, divisor) / predicted)
    assert 0.7 < np.median(ratios) < 1.4


@given(st.integers(0, 10_000), st.floats(0, 4))
def test_the_choice_is_never_worse_than_none(seed: int, spread: float) -> None:
    rows, weight, moment = drawn(seed, spread)
    found = smooth(seen(rows), [Reader.of(weight, moment)])
    assert found.damage <= found.damage_before
    assert np.all(found.divisor > 0)
    assert found.damage == pytest.approx(
        rounding_damage(seen(rows), [Reader.of(weight, moment)], found.divisor)
    )


def test_one_far_input_is_worth_dividing() -> None:
    rows, weight, moment = drawn(0, 0.0)
    rows[:, 3] *= 50
    found = smooth(seen(rows), [Reader.of(weight, moment)])
    before = measured(rows, weight, moment, np.ones(K))
    assert measured(rows, weight, moment, found.divisor) < before / 4
    assert np.argmax(found.divisor) == 3


def test_inputs_of_one_reach_stay() -> None:
    rows, weight, _ = drawn(0, 0.0)
    rows = np.clip(rows, -2, 2)
    found = smooth(seen(rows), [Reader.of(weight)])
    assert np.allclose(found.divisor, 1, rtol=0.05)


def test_inputs_that_are_always_zero_stay_finite() -> None:
    rows, weight, _ = drawn(0, 1.0)
    rows[:, :5] = 0
    for some in (rows, 0 * rows):
        found = smooth(seen(some), [Reader.of(weight)])
        assert np.isfinite(found.divisor).all()
        assert np.isfinite(found.damage)


def test_relative_damage_does_not_depend_on_the_size_of_a_layer() -> None:
    rows, weight, _ = drawn(0, 1.0)
    found = [
        rounding_damage(seen(rows), [Reader.relative(w, seen(rows))], np.ones(K))
        for w in (weight, 1000 * weight)
    ]
    assert found[0] == pytest.approx(found[1])
