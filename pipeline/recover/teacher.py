"""What the original computes, and how far from it counts how much.

Every compared value contributes the mean square of its error relative to its own variance, over
real positions. An output with a position for each position of the padding mask also contributes the
mean square of the error of its mean over positions, relative to the length of that mean: for small
errors twice what the cosine of the two means lacks. Where labels count, the first output of logits
``[samples, classes]``, or for a label at each position ``[samples, positions, tokens]``, also
contributes the mean cross-entropy of the labels that there are; mixed samples have none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from scipy.special import logsumexp

from compress_onnx.graph_passes.arrays import Array, Float32
from compress_onnx.graph_passes.errors import DataError, RequestError
from compress_onnx.graph_passes.rewriting.integers import FLOAT_PROPERTY
from compress_onnx.graph_passes.sites.linear_site import NEURONS_PROPERTY, SITE_PROPERTY
from compress_onnx.pipeline.data.masking import UNLABELLED
from compress_onnx.pipeline.recover.compared import (
    Compared,
    label_of,
    share_of,
    target_of,
    weight_of,
)
from compress_onnx.pipeline.recover.mixing import mixed
from compress_onnx.pipeline.runtime.batches import check_samples, model_batches
from compress_onnx.pipeline.runtime.inner_values import exposed
from compress_onnx.pipeline.runtime.padding import real_weights
from compress_onnx.pipeline.runtime.samples import Batch, Samples
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run

_MEMORY_LIMIT_BYTES = 1 << 30
_LEAST = 1e-12

_LENGTHS = 8
"""Lengths are multiples of it: PyTorch compiles each product of bfloat16 for each shape, which
takes longer than the product, and keeps what it compiled."""


@dataclass(frozen=True)
class Importance:
    """How much the terms of the loss count beside an output's positions, which count 1.

    ``hidden`` is shared out among the values inside the model; ``labels`` is the cross-entropy's.
    """

    hidden: float
    pooled: float
    labels: float = 0.0


class Teacher:
    """The original model and what it computes for batches of samples.

    Args:
        original: canonical, as the candidate is, so that values which both compute have one name;
            unchanged afterwards.
        data_folder: where its external data lies.
        candidate: the compressed model.
        importance: of the terms of the loss.
        spec: how the original is run.

    Raises:
        RequestError: no output is float32, so that there is nothing to compare.
    """

    def __init__(
        self,
        original: ir.Model,
        data_folder: Path,
        candidate: ir.Model,
        importance: Importance,
        spec: SessionSpec | None = None,
    ) -> None:
        self._outputs = [v.name or "" for v in original.graph.outputs if _is_float(v)]
        if not self._outputs:
            raise RequestError("no output of the model is float32: recovery has nothing to compare")
        self._hidden = _common_values(original, candidate) if importance.hidden else []
        self._importance = importance
        model = exposed(original, self._hidden)
        self._session = open_session(model, spec, data_folder=data_folder)
        self._kept: dict[int, dict[str, Array]] = {}
        self._kept_bytes = 0
        self._mask_name: str | None = None
        self.batches: list[Batch] = []
        self.compared: list[Compared] = []

    def take(self, samples: Samples, batch_size: int) -> range:
        """Cut ``samples`` into ``batches``; the first ones show which values can be compared.

        Returns:
            The numbers of the new batches.

        Raises:
            DataError: the samples do not fit the model, or labels should count and cannot.
        """
        check_samples(self._session, samples)
        begin = len(self.batches)
        self.batches += model_batches(self._session, samples, batch_size, multiple=_LENGTHS)
        if not self.compared:
            self._compare(samples)
        return range(begin, len(self.batches))

    def _compare(self, samples: Samples) -> None:
        """See which values there are to compare."""
        self._mask_name = samples.mask_name
        first = self.batches[0]
        self.compared = [
            Compared(name, value.ndim, name in self._outputs and _has_positions(value, first))
            for name, value in self._run(first).items()
            if value.ndim >= 2
        ]
        if not self.compared:
            raise DataError("the model's outputs are single numbers: recovery cannot compare them")
        if self._importance.labels:
            self._use_labels(samples)

    def _use_labels(self, samples: Samples) -> None:
        """Let the labels of ``samples`` count at the first output of logits."""
        if samples.labels is None:
            raise DataError(
                f"{samples.origin}: recovery with labels needs labels in the calibration data: "
                "add them, or leave labels out"
            )
        rank = samples.labels.ndim + 1
        outputs = [value for value in self.compared if value.name in self._outputs]
        logits = next((value for value in outputs if value.rank == rank), None)
        if logits is None:
            shape = "[samples, positions, tokens]" if rank == 3 else "[samples, classes]"
            raise DataError(f"recovery with labels needs an output {shape}: leave them out")
        place = self.compared.index(logits)
        self.compared[place] = replace(logits, labelled=True)

    def feeds(self, index: int) -> dict[str, Array]:
        """What a :class:`~pipeline.recover.distillation.Distillation` is fed for one batch.

        Kept in memory while there is room, else computed again.
        """
        if index in self._kept:
            return self._kept[index]
        feeds = self._feeds(self.batches[index])
        size = sum(array.nbytes for array in feeds.values())
        if self._kept_bytes + size <= _MEMORY_LIMIT_BYTES:
            self._kept[index] = feeds
            self._kept_bytes += size
        return feeds

    def own_loss(self, index: int) -> float:
        """The loss of the original itself on one batch: the entropy of labels, if they count."""
        labelled = [value.name for value in self.compared if value.labelled]
        feeds = self.feeds(index) if labelled else {}
        return sum(_entropy(feeds[target_of(name)], feeds[label_of(name)]) for name in labelled)

    def mixed_feeds(self, index: int, rng: np.random.Generator) -> dict[str, Array]:
        """The same for new samples, made out of those of one batch (see :mod:`.mixing`)."""
        return self._feeds(mixed(self.batches[index], self._mask_name, rng))

    def _feeds(self, batch: Batch) -> dict[str, Array]:
        targets, feeds = self._run(batch), dict(batch.feeds)
        for value in self.compared:
            feeds |= self._terms(value, targets[value.name], batch)
        return feeds

    def _run(self, batch: Batch) -> dict[str, Array]:
        return run(self._session, batch.feeds, [*self._outputs, *self._hidden])

    def _terms(self, value: Compared, target: Array, batch: Batch) -> dict[str, Array]:
        real = real_weights(target, batch.mask)[..., None]
        inside = value.name not in self._outputs
        importance = self._importance.hidden / len(self._hidden) if inside else 1.0
        terms: dict[str, Array] = {
            target_of(value.name): target,
            weight_of(value.name): position_weights(target, real, importance),
        }
        if value.pooled:
            terms[share_of(value.name)] = pooling_shares(target, real, self._importance.pooled)
        if value.labelled:
            weights = label_weights(target, batch.labels, self._importance.labels)
            terms[label_of(value.name)] = weights
        return terms


def position_weights(target: Array, real: Float32, importance: float) -> Float32:
    """``[..., 1]`` weights with which squared errors sum to ``importance`` times the relative one.

    Args:
        target: ``[..., D]``.
        real: ``[..., 1]``, 0 where padding is.
        importance: of the value.
    """
    rows = target[real[..., 0] > 0]  # [rows, D]
    centred = (
        rows - rows.mean(axis=0, dtype=np.float64).astype(rows.dtype) if len(rows) > 1 else rows
    )
    total = float(np.sum(np.square(centred), dtype=np.float64))
    return np.asarray(real * (importance / max(total, _LEAST)), np.float32)


def pooling_shares(target: Array, real: Float32, importance: float) -> Float32:
    """``[B, T, 1]`` shares with which the squared sums of errors are those of relative means.

    Args:
        target: ``[B, T, D]``.
        real: ``[B, T, 1]``.
        importance: of the pooled term.
    """
    share = real / np.maximum(real.sum(axis=1, keepdims=True), 1)
    length = np.linalg.norm(np.sum(target * share, axis=1, keepdims=True), axis=-1, keepdims=True)
    factor = np.sqrt(importance / len(target)) / np.maximum(length, _LEAST)
    return np.asarray(share * factor, np.float32)


def label_weights(target: Array, labels: Array | None, importance: float) -> Float32:
    """``[..., C]`` weights with which log-probabilities sum to ``-importance`` times the entropy.

    Args:
        target: ``[..., C]`` logits.
        labels: ``[...]`` classes, or :data:`~pipeline.data.masking.UNLABELLED`; None where there
            are none, which then count nothing.
        importance: of the labels.

    Raises:
        DataError: a label is not one of the C classes, or there is not one for each ``[...]``.
    """
    weights = np.zeros(target.shape, np.float32)
    if labels is None:
        return weights
    classes = target.shape[-1]
    if labels.shape != target.shape[:-1]:
        raise DataError(
            f"recovery with labels needs one for each of {list(target.shape[:-1])}, "
            f"found {list(labels.shape)}"
        )
    labelled = np.nonzero(labels != UNLABELLED)
    if labels.dtype.kind not in "iu" or not np.isin(labels[labelled], np.arange(classes)).all():
        raise DataError(f"recovery with labels needs whole numbers from 0 to {classes - 1}")
    weights[*labelled, labels[labelled]] = importance / max(len(labelled[0]), 1)
    return weights


def _entropy(logits: Array, weights: Array) -> float:
    """``-Σ weights·log softmax(logits)``, both ``[..., C]``."""
    labelled = np.nonzero(weights)
    exact = logits[labelled[:-1]].astype(np.float64)  # [labels, C]
    chosen = np.take_along_axis(exact, labelled[-1][:, None], axis=-1)[:, 0]
    surprise = logsumexp(exact, axis=-1) - chosen
    return float(np.sum(weights[labelled].astype(np.float64) * surprise))


def _has_positions(value: Array, batch: Batch) -> bool:
    return batch.mask is not None and value.ndim == 3 and value.shape[:2] == batch.mask.shape


def _common_values(original: ir.Model, candidate: ir.Model) -> list[str]:
    """Outputs of factored sites and of networks: the rewritten values, which kept their names."""
    theirs = {
        value.name for node in candidate.graph if _ends_a_layer(node) for value in node.outputs
    }
    outputs = {value.name for value in original.graph.outputs}
    return [
        value.name or ""
        for node in original.graph
        for value in node.outputs
        if value.name in theirs - outputs
    ]


def _ends_a_layer(node: ir.Node) -> bool:
    """Whether ``node`` computes all that a rewritten layer does.

    The product of a network's down layer alone lacks what went into its bias and its float branch.
    """
    role = node.metadata_props.get(NEURONS_PROPERTY)
    return (
        not {SITE_PROPERTY, FLOAT_PROPERTY}.isdisjoint(node.metadata_props)
        or role == "bias"
        or (role == "down" and node.op_type == "Gemm")
    )


def _is_float(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT
