"""Whether an answer depends on what else is in the batch.

Each sample is run alone, without padding, and in a padded batch with others; the cosine between the
two answers is 1 for a model that minds its own business. One whose scales come from the batch at
hand has less: who asks at the same time then changes the answer. A graph that fixes its batch
cannot show it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.pipeline.runtime.batches import model_batches, outputs_by_position
from compress_onnx.pipeline.runtime.padding import by_position
from compress_onnx.pipeline.runtime.samples import Batch, Samples
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run

SAMPLES = 64
"""How many samples are in the batch."""


def batch_invariance(
    model: Path, samples: Samples, spec: SessionSpec | None = None, count: int = SAMPLES
) -> float:
    """The least cosine between a sample's output alone and in a batch, over samples and outputs.

    Args:
        model: the path of the model.
        samples: of which the first ``count`` are taken.
        spec: how it is run.
        count: how many share the batch.

    Raises:
        ModelFileError: the model cannot be run.
    """
    session = open_session(model, spec)
    few = samples.select(np.arange(min(count, len(samples))))
    together = list(_answers(session, few, len(few)))
    alone = list(_answers(session, few, 1))
    cosines = [
        _cosine(ours, theirs)
        for one, other in zip(together, alone, strict=True)
        for ours, theirs in zip(one, other, strict=True)
    ]
    return min(cosines, default=1.0)


def _answers(
    session: ort.InferenceSession, samples: Samples, batch_size: int
) -> Iterator[list[Array]]:
    """For each sample, its part of each float output, padding left out."""
    positional = outputs_by_position(session, samples.mask_name)
    for batch in model_batches(session, samples, batch_size):
        outputs = run(session, batch.feeds)
        for row in range(len(batch.index)):
            yield [
                _part(value, batch, row, positional=name in positional)
                for name, value in outputs.items()
                if value.dtype.kind == "f" and value.ndim
            ]


def _part(value: Array, batch: Batch, row: int, *, positional: bool) -> Array:
    if batch.mask is not None and positional:
        placed = by_position(value, batch.mask)
        if placed is not None:
            real: Array = placed[row][batch.mask[row]]
            return real
    own: Array = value[row] if len(value) == len(batch.index) else value
    return own


def _cosine(one: Array, other: Array) -> float:
    a, b = (value.astype(np.float64).ravel() for value in (one, other))
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return 0.0
    a, b = a[finite], b[finite]
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else float(np.array_equal(a, b))
