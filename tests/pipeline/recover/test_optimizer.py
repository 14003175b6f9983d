"""Adam and its schedule."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compress_onnx.pipeline.recover.optimizer import Adam
from compress_onnx.pipeline.recover.schedule import scheduled
from compress_onnx.pipeline.recover.whitening import Whitening

# The optimizer


def test_adam_finds_the_minimum_and_steps_by_the_rate():
    weights = {"w": torch.tensor([2.0, -4.0])}
    scale = np.sqrt(10)
    adam = Adam(weights)
    adam.step({"w": torch.tensor([1e-3, -10.0])}, 0.1)
    np.testing.assert_allclose(weights["w"], [2 - 0.1 * scale, -4 + 0.1 * scale], rtol=1e-5)
    for _ in range(300):
        adam.step({"w": weights["w"] - 1}, 0.02)
    np.testing.assert_allclose(weights["w"], [1, 1], atol=0.05)


def test_a_first_step_alone_is_that_of_adam():
    torch.manual_seed(0)
    start = {"w": torch.randn(4, 3), "b": torch.randn(3)}
    gradients = {"w": torch.randn(4, 3), "b": torch.randn(3)}
    basis = torch.randn(4, 4)
    coordinates = {"w": Whitening(basis + basis.T, 0.7, 0)}
    stepped, tried = ({name: w.clone() for name, w in start.items()} for _ in range(2))
    adam = Adam(stepped, coordinates)
    adam.first_step(tried, gradients, 0.01)
    assert all(torch.equal(stepped[name], w) for name, w in start.items())
    adam.step(gradients, 0.01)
    for name, weight in stepped.items():
        assert not torch.equal(weight, start[name])
        torch.testing.assert_close(tried[name], weight)


def test_the_schedule_ramps_up_and_ends_at_zero():
    shares = [scheduled(done) for done in np.linspace(0, 1, 101)]
    peak = int(np.argmax(shares))
    assert 0 < peak < 10
    assert shares[peak] == pytest.approx(1, abs=1e-6)
    assert all(np.diff(shares[: peak + 1]) >= 0)
    assert all(np.diff(shares[peak:]) <= 0)
    assert 0 < shares[0] < 0.2
    assert shares[-1] == pytest.approx(0, abs=1e-12)
