"""The learning rate that is measured: a first step must help where it does not come from."""

from __future__ import annotations

import numpy as np

from compress_onnx.pipeline.recover.training import Training


class Parabolas:
    """For each batch (w − c)², where c is the batch's own; both what is trained and the teacher."""

    def __init__(self, *minima: float) -> None:
        self.minima = minima
        self.gradients = 0

    def feeds(self, index):
        return {"c": np.float32(self.minima[index])}

    def own_loss(self, _index):
        return 0.0

    def served(self, weights):
        return dict(weights)

    def loss(self, feeds, weights):
        return float((weights["w"] - float(feeds["c"])) ** 2)

    def gradient(self, feeds, weights):
        self.gradients += 1
        return self.loss(feeds, weights), {"w": 2 * (weights["w"] - float(feeds["c"]))}


def rate(*minima: float, largest: float = 1.0) -> float:
    """Training starts at w = 1, with the batches but the last, which is held out."""
    batches = list(range(len(minima) - 1))
    world = Parabolas(*minima)
    start = {"w": np.array([1.0], np.float32)}
    training = Training(
        world,
        start,
        teacher=world,
        batches=batches,
        held_out=[len(batches)],
        whitening={},
        mixing=0.0,
        seed=0,
    )
    before = training.state()
    found = training.suitable_rate(largest)
    assert world.gradients <= 3
    after = training.state()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    return found


def test_it_is_the_largest_that_helps_most():
    assert rate(0.9, 0.9, 0.9, 0.9) == 0.125
    assert rate(0.9, 0.9, 0.9, 0.9, largest=0.1) == 0.1
    assert rate(0.0, 0.0, 0.0) == 1.0


def test_the_held_out_batch_has_no_say():
    assert rate(0.9, 0.9, 0.9, 0.0) == 0.125


def test_the_batch_of_the_step_has_no_say():
    # In whatever order: one batch pulls down, the other up.
    assert rate(0.0, 2.0, 1.0) == 1 / 64


def test_a_single_batch_cannot_tell():
    assert rate(0.9, 0.9) == 1.0


def test_one_batch_that_leads_elsewhere_does_not_decide():
    minima = [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1.1]
    for place in range(len(minima)):
        turned = minima[place:] + minima[:place]
        assert rate(*turned, 0.5) >= 0.25
