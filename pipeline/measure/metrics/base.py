"""What every metric is, and how it finds the output that it looks at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import ModelFileError, RequestError
from compress_onnx.pipeline.runtime.samples import Batch

Outputs = Mapping[str, Array]


class TaskMetric(Protocol):
    """Accumulates both models' outputs over batches.

    A candidate whose values make the metric undefined (NaN) gets NaN, which no gate accepts, or
    counts as wrong; it is never left out.
    """

    def update(self, batch: Batch, reference: Outputs, candidate: Outputs) -> None:
        """Add one batch and what both models make of it."""

    def result(self) -> dict[str, float]:
        """The figures by name, over all batches so far."""

    def per_sample(self) -> dict[str, Array]:
        """The candidate's score of each sample or query ``[n]``, by name; after the result."""


def select_output(
    reference: Outputs, candidate: Outputs, *, wanted: str | None, rank: int
) -> tuple[Array, Array]:
    """The output that a metric looks at, of both models.

    Args:
        reference: the reference's outputs, in the model's order.
        candidate: the candidate's outputs.
        wanted: the output's name; by default the only output with ``rank`` axes, else the first.
        rank: how many axes the metric needs.

    Raises:
        RequestError: ``wanted`` is no output, or the output has another number of axes.
        ModelFileError: the candidate's output has another shape.
    """
    name = _default_output(reference, rank) if wanted is None else wanted
    if name not in reference:
        raise RequestError(
            f"the metric's output {name!r} is no output of the model: use one of "
            f"{', '.join(reference)}"
        )
    ours, theirs = reference[name], candidate[name]
    if ours.ndim != rank:
        raise RequestError(
            f"the metric needs an output with {rank} axes, but {name!r} has shape "
            f"{list(ours.shape)}: name another output or another pooling"
        )
    if ours.shape != theirs.shape:
        raise ModelFileError(
            f"output {name!r} has shape {list(ours.shape)} in the reference and "
            f"{list(theirs.shape)} in the candidate: compare two versions of the same model"
        )
    return ours, theirs


def _default_output(outputs: Outputs, rank: int) -> str:
    fitting = [name for name, array in outputs.items() if array.ndim == rank]
    return fitting[0] if len(fitting) == 1 else next(iter(outputs))
