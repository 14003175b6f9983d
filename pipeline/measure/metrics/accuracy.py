"""Labelled accuracy of a classifier, and whether a drop could be chance.

Both models see the same samples, so only those on which they differ in being right say anything:
b that only the reference gets right, c that only the candidate gets right, of n. The drop is
(b − c)/n. Its 95 % interval is Wald's with the Laplace adjustment of Bonett & Price (2012,
"Adjusted Wald confidence interval for a difference of binomial proportions based on paired data",
J. Educational and Behavioral Statistics 37), which Fagerland, Lydersen & Laake (2014, Statistics
in Medicine 33) recommend: p = (b+1)/(n+2), q = (c+1)/(n+2),

    p − q ± z·sqrt((p + q − (p − q)²)/(n + 2))

scipy has no interval of paired proportions. This one stays honest where a bootstrap collapses to a
point (b = c = 0). ``mcnemar_p`` is the exact binomial test of b against c.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import DataError, RequestError
from compress_onnx.pipeline.measure.metrics.base import Outputs, select_output
from compress_onnx.pipeline.recipe import AccuracyMetric
from compress_onnx.pipeline.runtime.samples import Batch

_Z_95 = float(norm.ppf(0.975))


class Accuracy:
    """Counts, over samples with one label each, which model is right; right is top-k."""

    def __init__(self, spec: AccuracyMetric) -> None:
        self._spec = spec
        self._samples = 0
        self._reference_right = 0
        self._candidate_right = 0
        self._only_reference = 0
        self._only_candidate = 0
        self._agreeing = 0
        self._right: list[Array] = []

    def update(self, batch: Batch, reference: Outputs, candidate: Outputs) -> None:
        """Count one batch; a sample whose logits contain NaN is wrong and agrees with nothing.

        Raises:
            DataError: no labels, or labels that are not one class number a sample.
            RequestError: the output is not ``[B, classes]``, or has no more than ``top_k`` classes.
            ModelFileError: the models' outputs differ in shape.
        """
        ours, theirs = select_output(reference, candidate, wanted=self._spec.output, rank=2)
        self.count(class_labels(batch.labels, classes=ours.shape[1]), ours, theirs)

    def count(self, labels: Array, ours: Array, theirs: Array) -> None:
        """Count samples with the class numbers ``labels`` ``[B]`` and logits ``[B, classes]``.

        Raises:
            RequestError: no more than ``top_k`` classes.
        """
        before = _top_classes(ours, self._spec.top_k)
        after = _top_classes(theirs, self._spec.top_k)
        reference_right = (before == labels[:, None]).any(axis=1)
        candidate_right = (after == labels[:, None]).any(axis=1)
        self._right.append(candidate_right)
        self._samples += len(labels)
        self._reference_right += int(reference_right.sum())
        self._candidate_right += int(candidate_right.sum())
        self._only_reference += int((reference_right & ~candidate_right).sum())
        self._only_candidate += int((candidate_right & ~reference_right).sum())
        self._agreeing += int(((before[:, 0] == after[:, 0]) & (before[:, 0] >= 0)).sum())

    def result(self) -> dict[str, float]:
        """Accuracies, their paired difference with a 95 % interval, and top-1 agreement.

        Raises:
            DataError: there was no sample.
        """
        n, b, c = self._samples, self._only_reference, self._only_candidate
        if not n:
            raise DataError("accuracy needs samples: there were none")
        low, high = paired_interval(b, c, n)
        return {
            "accuracy": self._candidate_right / n,
            "accuracy_reference": self._reference_right / n,
            "accuracy_drop": (b - c) / n,
            "accuracy_drop_low": low,
            "accuracy_drop_high": high,
            "agreement": self._agreeing / n,
            "mcnemar_p": float(binomtest(b, b + c).pvalue) if b + c else 1.0,
        }

    def per_sample(self) -> dict[str, Array]:
        """1 where the candidate is right."""
        return {"right": np.concatenate(self._right)} if self._right else {}


def paired_interval(b: int, c: int, n: int) -> tuple[float, float]:
    """The 95 % interval of (b − c)/n for paired proportions (Bonett & Price).

    Args:
        b: pairs in which only the first is a success.
        c: pairs in which only the second is a success.
        n: all pairs.
    """
    p, q = (b + 1) / (n + 2), (c + 1) / (n + 2)
    half_width = _Z_95 * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    return max(-1.0, p - q - half_width), min(1.0, p - q + half_width)


def class_labels(labels: Array | None, classes: int) -> Array:
    """The labels ``[B]``, one class number a sample.

    Raises:
        DataError: there are none, or they are something else.
    """
    if labels is None:
        raise DataError(
            "accuracy needs labels and the samples have none: name the labels in the recipe's "
            "data, or choose a metric that compares with the original model"
        )
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"labels must be one class number a sample, found {labels.dtype} "
            f"{list(labels.shape)}: convert them to integers [samples]"
        )
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        raise DataError(
            f"labels go from {labels.min()} to {labels.max()}, but the model has classes 0 to "
            f"{classes - 1}: use the model's own class numbers"
        )
    return labels


def _top_classes(logits: Array, top_k: int) -> NDArray[np.intp]:
    """``[B, top_k]`` best classes first, ties to the lower one; −1 in rows that contain NaN."""
    if top_k >= logits.shape[1]:
        raise RequestError(
            f"top {top_k} of {logits.shape[1]} classes is always right: ask for a smaller top_k"
        )
    scores = logits.astype(np.float64)
    top = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    top[np.isnan(scores).any(axis=1)] = -1
    return top
