"""Task metrics: what the models are worth to their users, beyond raw outputs.

A metric is a recipe section (:data:`pipeline.recipe.MetricSpec`) and an accumulator that is
constructed from it; ``_METRICS`` pairs them. Translations are scored as texts, by
:mod:`pipeline.translation`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.metrics.accuracy import Accuracy
from pipeline.metrics.base import Metric, Outputs
from pipeline.metrics.embedding import EmbeddingFidelity
from pipeline.metrics.mask_filling import MaskFilling
from pipeline.recipe import AccuracyMetric, EmbeddingMetric, MaskFillingMetric, MetricSpec

__all__ = ["Metric", "Outputs", "make_metric"]

_METRICS: dict[type[MetricSpec], Callable[[Any], Metric]] = {
    EmbeddingMetric: EmbeddingFidelity,
    AccuracyMetric: Accuracy,
    MaskFillingMetric: MaskFilling,
}


def make_metric(spec: MetricSpec) -> Metric:
    """A fresh accumulator for the metric that ``spec`` describes."""
    return _METRICS[type(spec)](spec)
