"""The loss of a model on its calibration data, for the methods that were published with one.

With labels it is the cross-entropy of the classes, of which perplexity is the exponential. Without
labels it is the squared change of the outputs under our own :mod:`~pipeline.evidence.objective`,
and its gradient that of a random projection of the outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import log_softmax, softmax

from compress_onnx.graph_passes.arrays import Array, Float32
from compress_onnx.pipeline.evidence.backward import Seeding
from compress_onnx.pipeline.evidence.objective import signs
from compress_onnx.pipeline.evidence.sensitivity import Trial, change_of
from compress_onnx.pipeline.runtime.samples import Batch
from studies.peers.laboratory import Laboratory


def adjoint(laboratory: Laboratory, seed: int) -> Seeding:
    """What a backward pass of the loss, a sample, starts from."""
    if laboratory.samples.labels is not None:
        return cross_entropy_adjoint
    rng = np.random.default_rng(seed)
    return lambda output, batch: signs(output, batch, laboratory.objective, rng)


def loss(laboratory: Laboratory) -> Callable[[Trial], float]:
    """The loss after a replacement, summed over the samples of the batch."""
    if laboratory.samples.labels is not None:
        return lambda trial: sum(
            cross_entropy(logits, trial.batch) for logits in trial.replaced.values()
        )
    return lambda trial: change_of(trial, laboratory.objective)


def cross_entropy(logits: Array, batch: Batch) -> float:
    """``−Σ log p(label)`` of logits ``[B, classes]``."""
    assert batch.labels is not None
    chosen = log_softmax(logits.astype(np.float64), axis=-1)[np.arange(len(logits)), batch.labels]
    return -float(np.sum(chosen))


def cross_entropy_adjoint(logits: Array, batch: Batch) -> Float32:
    """``p − onehot(label)``, the gradient of each sample's cross-entropy: ``[B, classes]``."""
    assert batch.labels is not None
    gradient = softmax(logits.astype(np.float64), axis=-1)
    gradient[np.arange(len(gradient)), batch.labels] -= 1.0
    return gradient.astype(np.float32)
