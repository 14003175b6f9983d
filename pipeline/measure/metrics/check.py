"""Whether a metric can be measured at all, from what is known before anything runs."""

from __future__ import annotations

from collections.abc import Collection

from compress_onnx.graph_passes.errors import DataError, RequestError
from compress_onnx.pipeline.recipe import (
    AccuracyMetric,
    MaskFillingMetric,
    MetricSpec,
    RetrievalMetric,
    TranslationMetric,
)

_LABELLED = AccuracyMetric | MaskFillingMetric | RetrievalMetric


def check_metric(
    metric: MetricSpec | None,
    outputs: Collection[str],
    has_labels: bool,
    data: str = "validation data",
) -> None:
    """Make sure that ``metric`` finds what it looks at.

    Args:
        metric: what is going to be measured; None checks nothing.
        outputs: names of the model's outputs.
        has_labels: whether the samples have labels.
        data: what the recipe calls the samples.

    Raises:
        RequestError: the output that the metric names is no output of the model.
        DataError: the metric needs labels, and there are none.
    """
    if metric is None or isinstance(metric, TranslationMetric):
        return
    if metric.output is not None and metric.output not in outputs:
        raise RequestError(
            f"the metric's output {metric.output!r} is no output of the model: use one of "
            f"{', '.join(outputs)}"
        )
    if isinstance(metric, _LABELLED) and not has_labels:
        raise DataError(
            f"the metric {metric.kind} needs labels and the samples have none: name the labels in "
            f"the recipe's {data}, or choose a metric that compares with the original model"
        )
