"""Do two models run at more than one input size?

Exporters sometimes bake the traced sizes into a graph that still declares dynamic axes. Where axes
are declared dynamic, both models run on made-up inputs of two sizes:

1. A size at which the reference fails says something about the reference: it is reported.
2. A size at which the reference runs and the candidate fails, or returns other shapes, is an error.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnxruntime as ort

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import DataError, ModelFileError
from compress_onnx.pipeline.runtime.inputs import ModelInput, synthetic_feeds
from compress_onnx.pipeline.runtime.session import run

SIZES = ((2, 7), (3, 12))
"""Batch and length of the two sizes; no number in common."""


def compare_sizes(
    reference: ort.InferenceSession,
    candidate: ort.InferenceSession,
    inputs: Sequence[ModelInput],
) -> str:
    """Run both models at two sizes and say in words what came out.

    Raises:
        ModelFileError: the candidate does not run where the reference does.
    """
    if all(isinstance(size, int) for model_input in inputs for size in model_input.shape):
        return "all axes are fixed: there is one size only"
    works = [_compare(reference, candidate, inputs, *size) for size in SIZES]
    names = [f"batch {batch}, length {length}" for batch, length in SIZES]
    if all(works):
        return f"both models run at {' and at '.join(names)}"
    broken = " and at ".join(name for name, ran in zip(names, works, strict=True) if not ran)
    return (
        f"the reference itself does not run at {broken}, although its axes are dynamic: "
        "its exporter baked sizes in"
    )


def _compare(
    reference: ort.InferenceSession,
    candidate: ort.InferenceSession,
    inputs: Sequence[ModelInput],
    batch: int,
    length: int,
) -> bool:
    """Whether the reference runs at this size; the candidate then has to, with equal shapes."""
    feeds = synthetic_feeds(inputs, batch=batch, length=length, seed=0)
    try:
        expected = run(reference, feeds)
    except (ModelFileError, DataError):
        return False
    shapes = {name: value.shape for name, value in run(candidate, feeds).items()}
    if shapes != _shapes(expected):
        raise ModelFileError(
            f"at batch {batch}, length {length} the candidate returns {shapes} instead of "
            f"{_shapes(expected)}: sizes were baked in, compress the original again"
        )
    return True


def _shapes(values: dict[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in values.items()}
