"""Whether requests may share a batch: only where an answer does not depend on the others."""

from __future__ import annotations

from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.deploy.package import Package
from compress_onnx.pipeline.measure.batch_invariance import batch_invariance
from compress_onnx.pipeline.results import RunReport
from compress_onnx.pipeline.runtime.inputs import model_inputs, synthetic_feeds
from compress_onnx.pipeline.runtime.samples import Samples

LEAST_INVARIANCE = 0.99999
"""The least cosine between an answer alone and in a batch: what rounding leaves of 1."""

_SAMPLES, _LENGTH = 8, 16


def why_not_together(package: Package) -> str | None:
    """Why requests must not share a batch; None where they may.

    The report's own figure counts where there is one; otherwise the model is asked, on made-up
    inputs.
    """
    if not has_batch_axis(package):
        return "an input or output of the graph has no free first axis"
    try:
        found = _reported(package)
        if found is None:
            found = _measured(package)
    except DataError as error:
        return str(error)
    if found < LEAST_INVARIANCE:
        return (
            f"answers depend on the batch: the cosine between an answer alone and in a batch is "
            f"{found:.6f}, below {LEAST_INVARIANCE}"
        )
    return None


def has_batch_axis(package: Package) -> bool:
    """Whether all inputs and outputs have the same free first axis."""
    values = (*package.inputs, *package.outputs)
    firsts = {value.shape[0] if value.shape else 0 for value in values}
    return not any(isinstance(first, int) for first in firsts)


def _reported(package: Package) -> float | None:
    report = package.report
    if not isinstance(report, RunReport) or report.validation is None:
        return None
    return report.validation.batch_invariance


def _measured(package: Package) -> float:
    declared = model_inputs(package.structure)
    feeds = synthetic_feeds(declared, batch=_SAMPLES, length=_LENGTH, seed=0)
    return batch_invariance(package.model, Samples(feeds, origin="made-up inputs"))
