"""Losses and trainings of the study of factors that start at random."""

from __future__ import annotations

import numpy as np
import pytest
from studies import random_factors
from studies.random_factors import LOSSES, Factors, as_target, drawn, squared_error, trained


@pytest.fixture
def target():
    weight = np.random.default_rng(5).normal(size=(12, 9)) * 0.5 ** np.arange(9)
    return as_target("small", weight, 40)


def svd(target) -> Factors:
    u, values, vt = np.linalg.svd(target.weight, full_matrices=False)
    return Factors(u[:, : target.rank] * values[: target.rank], vt[: target.rank])


def at(flat: np.ndarray, factors: Factors) -> Factors:
    left, right = np.split(flat, [factors.left.size])
    return Factors(left.reshape(factors.left.shape), right.reshape(factors.right.shape))


def test_half_of_the_parameters_are_left(target):
    assert target.rank == 2
    assert np.linalg.norm(target.weight) == pytest.approx(1)
    product = np.linalg.norm(np.matmul(*drawn(target, np.random.default_rng(0), target.deviation)))
    assert 0.3 < product < 3


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_the_slopes_of_the_loss(target, name):
    loss = LOSSES[name]
    factors = drawn(target, np.random.default_rng(1), target.deviation)
    found = np.concatenate([slope.ravel() for slope in loss.gradients(target, factors)])
    flat, step = np.concatenate([factor.ravel() for factor in factors]), 1e-6
    for index, shift in enumerate(np.eye(flat.size) * step):
        ahead, behind = (loss.value(target, at(flat + by, factors)) for by in (shift, -shift))
        assert found[index] == pytest.approx((ahead - behind) / (2 * step), abs=1e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_no_factors_are_below_the_least(target, name):
    loss = LOSSES[name]
    values = [
        loss.value(target, drawn(target, np.random.default_rng(seed), target.deviation))
        for seed in range(20)
    ]
    assert min(values) > loss.least(target)
    if name != "difference of norms":
        assert loss.value(target, svd(target)) == pytest.approx(loss.least(target))
    assert squared_error(target, svd(target)) == pytest.approx(target.tail)


@pytest.mark.parametrize("trainer", ["gradient descent", "Adam"])
def test_gradients_of_the_squared_error_lead_to_the_bound(target, trainer):
    found = trained(target, LOSSES["mean squared error"], trainer, seed=0)
    assert found.loss - target.tail <= random_factors.TOLERANCE
    assert found.steps < random_factors.STEPS
    again = trained(target, LOSSES["mean squared error"], trainer, seed=0)
    assert np.array_equal(again.factors.left, found.factors.left)


@pytest.mark.parametrize("name", ["difference of norms", "difference of singular values"])
def test_a_loss_that_does_not_see_the_weight_converges_far_from_it(target, name):
    found = trained(target, LOSSES[name], "gradient descent", seed=0)
    assert found.loss - LOSSES[name].least(target) <= random_factors.TOLERANCE
    assert squared_error(target, found.factors) > 1.1 * target.tail + 0.1


def test_an_evolution_strategy_goes_down_and_ends_with_its_generations(target):
    loss = LOSSES["mean squared error"]
    start = loss.value(target, drawn(target, np.random.default_rng(0), target.deviation))
    found = trained(target, loss, "evolution strategy", seed=0)
    assert found.steps <= target.generations
    assert found.loss < start


def test_a_line_says_how_many_converged_and_how_far_the_error_is(target):
    line = random_factors.row(target, "difference of norms", "gradient descent", 1.0)
    assert line[2] == "3 of 3"
    assert float(line[5].split("–")[0]) > 2
