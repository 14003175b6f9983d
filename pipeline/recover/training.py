"""One training: weights, optimizer, the best weights so far, and how to store and restore all that.

Batches come in an order that depends on the seed and the number of the step alone, so that a
training which is restored goes on as if it had never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from compress_onnx.graph_passes.arrays import Array, Float32, Stored
from compress_onnx.pipeline.recover.distillation import Distillation
from compress_onnx.pipeline.recover.optimizer import Adam
from compress_onnx.pipeline.recover.teacher import Teacher
from compress_onnx.pipeline.recover.whitening import Whitening

_BATCHES_OF_STEP, _BATCHES_OF_RATE = 3, 4
"""A first step comes from the one, whether it helps is told by the other."""

_MOST_HALVINGS = 6


class Training:
    """Weights on their way from the start to the best that was found.

    Args:
        distillation: loss and gradient.
        start: the weights by name; unchanged.
        teacher: knows the batches, by number, and what the original computes for them.
        batches: to train on.
        held_out: to measure on.
        whitening: the coordinates in which matrices are moved, by name.
        mixing: the share of the steps that train on mixed samples, after the first epoch.
        seed: of the order of the batches, and of the mixing.
        device: of PyTorch, where it trains.
        half: whether coordinates are changed by products of bfloat16.

    Attributes:
        start_loss, best_loss: held-out losses.
        own_loss: that of the original itself.
        steps: taken so far.
        stale: checks since the best.
        returns: how often training went back to the best.
        finite: False once a loss was not.
    """

    def __init__(
        self,
        distillation: Distillation,
        start: Mapping[str, Float32],
        *,
        teacher: Teacher,
        batches: Sequence[int],
        held_out: Sequence[int],
        whitening: Mapping[str, Whitening],
        mixing: float,
        seed: int,
        device: str = "cpu",
        half: bool = False,
    ) -> None:
        self._distillation = distillation
        self._teacher = teacher
        self._mixing = mixing
        self._batches = batches
        self._held_out = held_out
        self._seed = seed
        self._weights = {name: torch.tensor(array, device=device) for name, array in start.items()}
        self._adam = Adam(self._weights, whitening, half=half)
        self._best = {name: weight.clone() for name, weight in self._weights.items()}
        self.start_loss = self.best_loss = self._held_out_loss()
        self.own_loss = float(np.mean([teacher.own_loss(index) for index in held_out]))
        self.steps = self.stale = self.returns = 0
        self.finite = math.isfinite(self.start_loss)

    @property
    def batches(self) -> int:
        """Batches in an epoch."""
        return len(self._batches)

    def step(self, rate: float) -> None:
        """One step on one batch."""
        epoch, position = divmod(self.steps, len(self._batches))
        loss, gradients = self._distillation.gradient(
            self._training_feeds(self._order(epoch)[position], epoch),
            self._distillation.served(self._weights),
        )
        self._adam.step(gradients, rate)
        self.steps += 1
        self.finite = math.isfinite(loss)

    def suitable_rate(self, largest: float) -> float:
        """The learning rate, at most ``largest``, at which a first step helps most.

        It is measured on batches that the step does not come from: what a step gains on its own
        batches says nothing of others, and at too high a rate others lose. The step comes from the
        mean of a few gradients, as Adam's do: one batch alone may lead nowhere at any rate. Halved
        from ``largest`` on until that makes it worse. Nothing of the training changes.
        """
        few = self._order(0)[: _BATCHES_OF_STEP + _BATCHES_OF_RATE]
        own = min(_BATCHES_OF_STEP, len(few) // 2)
        if not own:
            return largest
        others = few[own:]
        gradients = self._mean_gradient(few[:own])
        best_rate, least = largest, math.inf
        for halvings in range(_MOST_HALVINGS + 1):
            rate = largest * 0.5**halvings
            moved = {name: weight.clone() for name, weight in self._weights.items()}
            self._adam.first_step(moved, gradients, rate)
            loss = self._mean_loss(others, moved)
            if loss >= least:
                break
            best_rate, least = rate, loss
        return best_rate

    def check(self) -> None:
        """Measure the held-out loss and keep the weights if it is the least so far."""
        loss = self._held_out_loss()
        self.finite = math.isfinite(loss)
        self.stale += 1
        if loss < self.best_loss:
            self.best_loss, self.stale = loss, 0
            for name, weight in self._weights.items():
                self._best[name].copy_(weight)

    @property
    def best(self) -> dict[str, Float32]:
        """The weights with the least held-out loss, the start included."""
        return {name: weight.cpu().numpy() for name, weight in self._best.items()}

    def go_back(self) -> None:
        """Go on from the best weights, with nothing remembered of how they were left."""
        for name, weight in self._weights.items():
            weight.copy_(self._best[name])
        self._adam.forget()
        self.returns += 1

    def state(self) -> dict[str, Array]:
        """Everything that :meth:`restore` needs."""
        arrays: dict[str, Array] = {
            "counts": np.array([self.steps, self._adam.steps, self.stale, self.returns]),
            "losses": np.array([self.start_loss, self.best_loss]),
        }
        return arrays | {name: tensor.cpu().numpy() for name, tensor in self._tensors.items()}

    def restore(self, state: Mapping[str, Stored]) -> None:
        """Go on from ``state``."""
        self.steps, self._adam.steps, self.stale, self.returns = map(
            int, np.asarray(state["counts"])
        )
        self.start_loss, self.best_loss = map(float, np.asarray(state["losses"]))
        for name, tensor in self._tensors.items():
            tensor.copy_(torch.from_numpy(np.asarray(state[name])))

    @property
    def _tensors(self) -> dict[str, Tensor]:
        """What changes, by the names under which it is stored."""
        tensors = {f"now/{name}": weight for name, weight in self._weights.items()}
        tensors |= {f"best/{name}": weight for name, weight in self._best.items()}
        return tensors | self._adam.moments

    def _order(self, epoch: int) -> list[int]:
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._batches))
        return [self._batches[place] for place in order]

    def _training_feeds(self, index: int, epoch: int) -> Mapping[str, Array]:
        """A batch, or what is mixed of it: not before all of it was seen as it is."""
        rng = np.random.default_rng([self._seed, self.steps, 1])
        if epoch > 0 and rng.random() < self._mixing:
            return self._teacher.mixed_feeds(index, rng)
        return self._teacher.feeds(index)

    def _held_out_loss(self) -> float:
        return self._mean_loss(self._held_out, self._weights)

    def _mean_gradient(self, batches: Sequence[int]) -> dict[str, Tensor]:
        served = self._distillation.served(self._weights)
        mean = {name: torch.zeros_like(weight) for name, weight in self._weights.items()}
        for batch in batches:
            _, gradients = self._distillation.gradient(self._teacher.feeds(batch), served)
            for name, gradient in gradients.items():
                mean[name] += gradient / len(batches)
        return mean

    def _mean_loss(self, batches: Sequence[int], weights: Mapping[str, Tensor]) -> float:
        served = self._distillation.served(weights)
        losses = [self._distillation.loss(self._teacher.feeds(i), served) for i in batches]
        return float(np.mean(losses))
