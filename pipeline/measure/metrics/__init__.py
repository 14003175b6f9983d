"""Task metrics: what the models are worth to their users, beyond raw outputs.

A metric is a recipe section (:data:`pipeline.recipe.MetricSpec`) and an accumulator that is
constructed from it; ``_METRICS`` pairs them. Translations are scored as texts, by
:mod:`pipeline.translate.experiment`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compress_onnx.pipeline.measure.metrics.accuracy import Accuracy
from compress_onnx.pipeline.measure.metrics.base import Outputs, TaskMetric
from compress_onnx.pipeline.measure.metrics.embedding import EmbeddingFidelity
from compress_onnx.pipeline.measure.metrics.mask_filling import MaskFilling
from compress_onnx.pipeline.measure.metrics.retrieval import Retrieval
from compress_onnx.pipeline.recipe import (
    AccuracyMetric,
    EmbeddingMetric,
    MaskFillingMetric,
    MetricSpec,
    RetrievalMetric,
)

__all__ = ["Outputs", "TaskMetric", "make_metric"]

_METRICS: dict[type[MetricSpec], Callable[[Any], TaskMetric]] = {
    EmbeddingMetric: EmbeddingFidelity,
    AccuracyMetric: Accuracy,
    MaskFillingMetric: MaskFilling,
    RetrievalMetric: Retrieval,
}


def make_metric(spec: MetricSpec) -> TaskMetric:
    """A fresh accumulator for the metric that ``spec`` describes."""
    return _METRICS[type(spec)](spec)
