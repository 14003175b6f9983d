"""Whether an answer depends on what else is in the batch.

Each sample is run alone, without padding, and in a padded batch with others; the cosine between the
two answers is 1 for a model that minds its own business. One whose scales come from the batch at
hand has less: who asks at the same time then changes the answer.

A graph that fixes its batch cannot show it, nor can a single sample, nor outputs of integers alone:
that is an error, never a 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.runtime.batches import fixed_batch, model_batches
from compress_onnx.pipeline.runtime.padding import by_position, is_flattened
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
        DataError: the model or the samples cannot show it.
        ModelFileError: the model cannot be run.
    """
    return session_invariance(open_session(model, spec), samples, count)


def session_invariance(
    session: ort.InferenceSession, samples: Samples, count: int = SAMPLES
) -> float:
    """As :func:`batch_invariance`, of a model that is open.

    Raises:
        DataError: the model or the samples cannot show it.
        ModelFileError: the model cannot be run.
    """
    few = samples.select(np.arange(min(count, len(samples))))
    if (fixed := fixed_batch(session, few)) is not None:
        raise _unshown(f"the graph fixes its batch at {fixed}, export it with a free one")
    if len(few) < 2:
        raise _unshown("one sample makes no batch, give more")
    cosines = [
        _cosine(ours, theirs)
        for together, alone in zip(
            _answers(session, few, len(few)), _answers(session, few, 1), strict=True
        )
        for ours, theirs in zip(together, alone, strict=True)
    ]
    if not cosines:
        raise _unshown("no output of the model holds floating-point numbers")
    return min(cosines)


def _unshown(why: str) -> DataError:
    return DataError(f"batch invariance cannot be measured: {why}")


def _answers(
    session: ort.InferenceSession, samples: Samples, batch_size: int
) -> Iterator[list[Array]]:
    """For each sample, its part of each float output, padding left out."""
    shapes = {value.name: value.shape for value in session.get_outputs()}
    for batch in model_batches(session, samples, batch_size):
        outputs = run(session, batch.feeds)
        for row in range(len(batch.index)):
            yield [
                _part(value, batch, row, shapes[name])
                for name, value in outputs.items()
                if value.dtype.kind == "f" and value.ndim
            ]


def _part(value: Array, batch: Batch, row: int, declared: list[int | str | None]) -> Array:
    """What of ``value`` is about the sample ``row``; all of it where it has no axis of samples.

    ``[B, ...]`` or, flattened in front of a product, ``[B·T, ...]``. Padding is left out along
    each axis that is as long as the mask and not fixed in the graph (``[B, heads, T, T]``).
    """
    count, mask = len(batch.index), batch.mask
    if mask is not None and is_flattened(value, mask):
        placed = by_position(value, mask)
        assert placed is not None
        real: Array = placed[row][mask[row]]
        return real
    if len(value) % count:
        return value
    rows = len(value) // count
    part: Array = value[row * rows : (row + 1) * rows]
    if mask is not None:
        for axis in range(1, part.ndim):
            fixed = axis < len(declared) and isinstance(declared[axis], int)
            if part.shape[axis] == mask.shape[1] and not fixed:
                part = np.compress(mask[row], part, axis=axis)
    return part


def _cosine(one: Array, other: Array) -> float:
    a, b = (value.astype(np.float64).ravel() for value in (one, other))
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return 0.0
    a, b = a[finite], b[finite]
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return min(1.0, float(a @ b) / norms) if norms else float(np.array_equal(a, b))
