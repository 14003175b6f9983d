"""What a drop is measured on, and as what, for a model that comes without a recipe.

1. Samples that calibration never sees: the user's own, else every n-th calibration sample (the
   fifth, unless said otherwise), which is then taken out of calibration.
2. With labels the drop is one of accuracy; where the pooled output is what matters, one of its
   cosine; else it is the relative L2 of the worst output.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.evidence.objective import Objective
from compress_onnx.pipeline.recipe import (
    AccuracyMetric,
    EmbeddingMetric,
    MetricSpec,
    RetrievalMetric,
)
from compress_onnx.pipeline.runtime.inputs import load_structure
from compress_onnx.pipeline.runtime.samples import Samples, every_nth

EVERY = 5


def hold_out(samples: Samples, every: int = EVERY) -> tuple[Samples, Samples]:
    """What is left to calibrate on, and every ``every``-th sample to measure on.

    Raises:
        DataError: so few samples that none or a single one would be held out.
    """
    fewest = 2 * every
    if len(samples) < fewest:
        raise DataError(
            f"{samples.origin}: {len(samples)} samples are too few to hold every {every}th out: "
            f"give held-out samples of your own, or at least {fewest}"
        )
    held_out = every_nth(len(samples), every)
    rest, measured = (samples.select(np.flatnonzero(chosen)) for chosen in (~held_out, held_out))
    return (
        replace(rest, origin=f"{samples.origin} without every {every}th"),
        replace(measured, origin=f"{samples.origin}, every {every}th, held out of calibration"),
    )


def hold_out_if_enough(samples: Samples) -> tuple[Samples, Samples | None]:
    """As :func:`hold_out`; all samples and None where they are too few."""
    return hold_out(samples) if len(samples) >= 2 * EVERY else (samples, None)


def objective_of(metric: MetricSpec | None) -> Objective:
    """What about the outputs matters to ``metric``."""
    pooled = isinstance(metric, EmbeddingMetric | RetrievalMetric) and metric.pooling == "mean"
    return "pooled" if pooled else "positions"


def metric_for(model: Path, held_out: Samples, objective: Objective | None) -> MetricSpec | None:
    """The metric that rule 2 says; None is the relative L2 that every validation measures."""
    if held_out.labels is not None:
        return AccuracyMetric(kind="accuracy")
    outputs = load_structure(model).graph.output
    if objective == "pooled" and any(len(o.type.tensor_type.shape.dim) == 3 for o in outputs):
        # Neighbours are not looked at: one leaves room for few samples.
        return EmbeddingMetric(kind="embedding", pooling="mean", neighbours=1)
    return None
