"""Filling in masked words: is the right one among the k best guesses?

Each labelled position counts as one sample of :mod:`pipeline.measure.metrics.accuracy`, whose
figures these are; its interval takes them for independent, which holds with one masked word a
sentence.
"""

from __future__ import annotations

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.data.masking import UNLABELLED
from compress_onnx.pipeline.measure.metrics.accuracy import Accuracy, class_labels
from compress_onnx.pipeline.measure.metrics.base import Outputs, select_output
from compress_onnx.pipeline.recipe import AccuracyMetric, MaskFillingMetric
from compress_onnx.pipeline.runtime.samples import Batch


class MaskFilling:
    """Counts, over masked positions, which model is right; right is top-k."""

    def __init__(self, spec: MaskFillingMetric) -> None:
        self._spec = spec
        self._accuracy = Accuracy(AccuracyMetric(kind="accuracy", top_k=spec.top_k))

    def update(self, batch: Batch, reference: Outputs, candidate: Outputs) -> None:
        """Count one batch; a position whose logits contain NaN is wrong.

        Raises:
            DataError: no labels, or labels that are not one token number a position.
            RequestError: the output is not ``[B, T, tokens]``.
            ModelFileError: the models' outputs differ in shape.
        """
        ours, theirs = select_output(reference, candidate, wanted=self._spec.output, rank=3)
        if batch.labels is None or batch.labels.shape != ours.shape[:2]:
            found = "none" if batch.labels is None else f"{list(batch.labels.shape)}"
            raise DataError(
                f"mask filling needs a label for each position {list(ours.shape[:2])}, found "
                f"{found}: use data of the kind masked"
            )
        filled = batch.labels != UNLABELLED
        labels = class_labels(batch.labels[filled], classes=ours.shape[2])
        self._accuracy.count(labels, ours[filled], theirs[filled])

    def result(self) -> dict[str, float]:
        """As :meth:`Accuracy.result`.

        Raises:
            DataError: nothing was masked.
        """
        return self._accuracy.result()

    def per_sample(self) -> dict[str, Array]:
        """1 where the candidate fills in the right word, by masked position."""
        return self._accuracy.per_sample()
