"""Validation: two models on the same samples, output by output and in the task's own terms.

A reference that computes NaN on real positions cannot be compared with anything: the samples, or
the model, are refused. Infinities are results (logits of tokens that are ruled out are −∞).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import DataError, ModelFileError
from compress_onnx.pipeline.files.cache import content_key
from compress_onnx.pipeline.measure.batch_invariance import session_invariance
from compress_onnx.pipeline.measure.compare import OutputComparator
from compress_onnx.pipeline.measure.metrics import TaskMetric, make_metric
from compress_onnx.pipeline.measure.providers import Requested, measure_on
from compress_onnx.pipeline.measure.sizes import compare_sizes
from compress_onnx.pipeline.measure.tolerance import Tolerance
from compress_onnx.pipeline.recipe import MetricSpec
from compress_onnx.pipeline.results import ValidationReport
from compress_onnx.pipeline.runtime.batches import (
    check_samples,
    dtype_name,
    model_batches,
    outputs_by_position,
)
from compress_onnx.pipeline.runtime.inputs import load_structure, model_inputs
from compress_onnx.pipeline.runtime.padding import by_position, is_flattened
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import Provider, SessionSpec, open_session, run


def validate(
    reference: Path,
    candidate: Path,
    samples: Samples,
    *,
    metric: MetricSpec | None = None,
    spec: SessionSpec | None = None,
    batch_size: int = 32,
    batch_invariance: bool = False,
    tolerances: Mapping[str, Tolerance] | None = None,
    progress: Callable[[int], None] | None = None,
) -> ValidationReport:
    """Compare ``candidate`` with ``reference`` on all ``samples``; padding is left out.

    Args:
        reference: the original ONNX model.
        candidate: the compressed one; it has the same inputs and outputs.
        samples: data that calibration never saw.
        metric: the task's metric; None compares raw outputs only.
        spec: how both models are run.
        batch_size: at most so many samples at a time (a batch fixed in the graph goes first).
        batch_invariance: also measure that of both models, which takes a run for each of 64
            samples; where it cannot be measured, the report says why.
        tolerances: by output, how far single numbers may be off; the report counts those that are
            farther.
        progress: called after each batch with the number of samples done so far.

    Raises:
        DataError: the samples do not fit the model or the metric, the reference computes NaN, or
            nothing could be compared.
        ModelFileError: a model cannot be loaded or run, or the two are not the same model.
        RequestError: the metric does not fit the model's outputs.
        ProviderError: the provider is not available.
    """
    reference_session, candidate_session = (open_session(m, spec) for m in (reference, candidate))
    _check_same_interface(reference_session, candidate_session)
    check_samples(reference_session, samples)
    positional = outputs_by_position(reference_session, samples.mask_name)
    allowed = tolerances or {}
    comparators = {
        o.name: OutputComparator(allowed.get(o.name)) for o in reference_session.get_outputs()
    }
    accumulator = make_metric(metric) if metric is not None else None
    done = 0
    for batch in model_batches(reference_session, samples, batch_size):
        expected = run(reference_session, batch.feeds)
        actual = run(candidate_session, batch.feeds)
        for name, comparator in comparators.items():
            mask = _mask_of(expected[name], batch.mask, name in positional)
            _check_reference(name, expected[name], mask)
            comparator.update(expected[name], actual[name], mask)
        if accumulator is not None:
            accumulator.update(batch, expected, actual)
        done += len(batch.index)
        if progress is not None:
            progress(done)
    return ValidationReport(
        samples=len(samples),
        origin=samples.origin,
        outputs=tuple(comparator.result(name) for name, comparator in comparators.items()),
        metrics=accumulator.result() if accumulator is not None else {},
        digest=content_key("samples", samples.inputs),
        per_sample=_per_sample(accumulator),
        sizes=_compare_sizes(reference, reference_session, candidate_session),
        provider=(spec or SessionSpec()).provider,
        **(_invariances(reference_session, candidate_session, samples) if batch_invariance else {}),
    )


def validate_on(
    requested: Sequence[Requested], measure: Callable[[Provider], ValidationReport]
) -> ValidationReport:
    """Compare two models on each provider that was asked for.

    Args:
        requested: providers, or ``auto``.
        measure: runs :func:`validate` on one provider.

    Returns:
        The report of the first provider, with those of the others in it.

    Raises:
        ProviderError: a provider that was asked for by name does not work here.
    """
    (first, *others), unmeasured = measure_on(requested, measure)
    unmeasured = {**first.unmeasured, **unmeasured}
    return first.model_copy(update={"elsewhere": tuple(others), "unmeasured": unmeasured})


def _invariances(
    reference: ort.InferenceSession, candidate: ort.InferenceSession, samples: Samples
) -> dict[str, Any]:
    """The fields of a report that say how much both models depend on the batch, or why not."""
    found: dict[str, float] = {}
    unmeasured: dict[str, str] = {}
    names = {"batch_invariance": candidate, "batch_invariance_reference": reference}
    for name, session in names.items():
        try:
            found[name] = session_invariance(session, samples)
        except DataError as error:
            unmeasured[name] = str(error)
    return {**found, "unmeasured": unmeasured}


def _per_sample(metric: TaskMetric | None) -> dict[str, tuple[float, ...]]:
    """Scores to six digits; those of a damaged model, which are not finite, are left out."""
    if metric is None:
        return {}
    return {
        name: tuple(float(f"{score:.6g}") for score in scores)
        for name, scores in metric.per_sample().items()
        if np.isfinite(scores).all()
    }


def _mask_of(
    output: Array, mask: NDArray[np.bool_] | None, positional: bool
) -> NDArray[np.bool_] | None:
    """The mask ``[B, T]`` where it applies to ``output`` ([B, T, ...] or [B·T, ...])."""
    if mask is None or not (positional or is_flattened(output, mask)):
        return None
    return mask


def _check_reference(name: str, output: Array, mask: NDArray[np.bool_] | None) -> None:
    if output.dtype.kind != "f" or not np.isnan(output).any():
        return
    positions = None if mask is None else by_position(output, mask)
    real = output if positions is None or mask is None else positions[mask]
    if np.isnan(real).any():
        raise DataError(
            f"the reference itself computes NaN in its output {name!r}: leave out the samples "
            "where it does, or export the model with a wider dtype"
        )


def _compare_sizes(
    path: Path, reference: ort.InferenceSession, candidate: ort.InferenceSession
) -> str:
    try:
        inputs = model_inputs(load_structure(path))
    except DataError as error:  # the samples came from a file, nothing had to be made up so far
        return f"not tried at other sizes: {error}"
    return compare_sizes(reference, candidate, inputs)


def _check_same_interface(reference: ort.InferenceSession, candidate: ort.InferenceSession) -> None:
    for what, ours, theirs in (
        ("inputs", _typed_inputs(reference), _typed_inputs(candidate)),
        ("outputs", _output_names(reference), _output_names(candidate)),
    ):
        if ours != theirs:
            raise ModelFileError(
                f"the models' {what} differ: {', '.join(sorted(ours))} in the reference, "
                f"{', '.join(sorted(theirs))} in the candidate; compare two versions of one model"
            )


def _typed_inputs(session: ort.InferenceSession) -> set[str]:
    return {f"{value.name} ({dtype_name(value)})" for value in session.get_inputs()}


def _output_names(session: ort.InferenceSession) -> set[str]:
    return {value.name for value in session.get_outputs()}
