"""Validation: two models on the same samples, output by output and in the task's own terms.

Before anything runs, the samples are held against the graph's inputs (:func:`check_samples`) and
cut into batches of a size that the graph takes (:func:`model_batches`); calibration does the same.
Nothing is cast: a model that is fed something else than its users feed it proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import onnxruntime as ort

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import DataError, ModelFileError
from compress_onnx.pipeline.measure.compare import OutputComparator
from compress_onnx.pipeline.measure.metrics import make_metric
from compress_onnx.pipeline.measure.sizes import compare_sizes
from compress_onnx.pipeline.recipe import MetricSpec
from compress_onnx.pipeline.results import ValidationReport
from compress_onnx.pipeline.runtime.inputs import load_structure, model_inputs
from compress_onnx.pipeline.runtime.samples import Batch, Samples
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run

_NUMPY_NAMES = {"float": "float32", "double": "float64"}


def validate(
    reference: Path,
    candidate: Path,
    samples: Samples,
    *,
    metric: MetricSpec | None = None,
    spec: SessionSpec | None = None,
    batch_size: int = 32,
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
        progress: called after each batch with the number of samples done so far.

    Raises:
        DataError: the samples do not fit the model or the metric, or nothing could be compared.
        ModelFileError: a model cannot be loaded or run, or the two are not the same model.
        RequestError: the metric does not fit the model's outputs.
        ProviderError: the provider is not available.
    """
    reference_session, candidate_session = (open_session(m, spec) for m in (reference, candidate))
    _check_same_interface(reference_session, candidate_session)
    check_samples(reference_session, samples)
    masked = _per_position_outputs(reference_session, samples.mask_name)
    comparators = {o.name: OutputComparator() for o in reference_session.get_outputs()}
    accumulator = make_metric(metric) if metric is not None else None
    done = 0
    for batch in model_batches(reference_session, samples, batch_size):
        expected = run(reference_session, batch.feeds)
        actual = run(candidate_session, batch.feeds)
        for name, comparator in comparators.items():
            mask = batch.mask if name in masked else None
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
        sizes=_compare_sizes(reference, reference_session, candidate_session),
    )


def _compare_sizes(
    path: Path, reference: ort.InferenceSession, candidate: ort.InferenceSession
) -> str:
    try:
        inputs = model_inputs(load_structure(path))
    except DataError as error:  # the samples came from a file, nothing had to be made up so far
        return f"not tried at other sizes: {error}"
    return compare_sizes(reference, candidate, inputs)


def check_samples(session: ort.InferenceSession, samples: Samples) -> None:
    """Make sure that the samples are exactly what the model takes.

    Args:
        session: the model.
        samples: one array for each model input.

    Raises:
        DataError: an array is missing, unknown, or has another dtype or shape than the model's
            input; the message names the input, what was expected and what was found.
    """
    declared = {value.name: value for value in session.get_inputs()}
    for name in samples.inputs:
        if name not in declared:
            role = "padding mask" if name == samples.mask_name else "array"
            raise DataError(
                f"{samples.origin}: the {role} {name!r} is no input of the model: "
                f"it takes {', '.join(declared)}"
            )
    for name, value in declared.items():
        wanted = f"{_dtype_name(value)} {_shape_text(value.shape)}"
        if name not in samples.inputs:
            raise DataError(
                f"{samples.origin}: the model's input {name!r} ({wanted}) is missing: add the "
                f"array to {', '.join(samples.inputs)}"
            )
        array = samples.inputs[name]
        misfit = _misfit(value, array)
        if misfit is not None:
            raise DataError(
                f"{samples.origin}: input {name!r} must be {wanted}, found {array.dtype} "
                f"{_shape_text(array.shape)}: {misfit}"
            )


def model_batches(
    session: ort.InferenceSession, samples: Samples, batch_size: int
) -> Iterator[Batch]:
    """Batches that the model accepts.

    They have ``batch_size`` samples unless the graph fixes the batch, and padding is cut off
    unless the graph fixes the length.
    """
    shapes = [value.shape for value in session.get_inputs() if value.shape]
    size = min((shape[0] for shape in shapes if isinstance(shape[0], int)), default=batch_size)
    mask_name = samples.mask_name
    if mask_name is None or not _length_is_fixed(shapes, samples.inputs[mask_name].shape[1]):
        yield from samples.batches(size)
        return
    for batch in replace(samples, mask_name=None).batches(size):
        yield replace(batch, mask=batch.feeds[mask_name].astype(bool))


def _length_is_fixed(shapes: list[list[int | str | None]], length: int) -> bool:
    return any(len(shape) == 2 and shape[1] == length for shape in shapes)


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
    return {f"{value.name} ({_dtype_name(value)})" for value in session.get_inputs()}


def _output_names(session: ort.InferenceSession) -> set[str]:
    return {value.name for value in session.get_outputs()}


def _per_position_outputs(session: ort.InferenceSession, mask_name: str | None) -> set[str]:
    """Outputs that the padding mask applies to where their shapes agree.

    Ten logits for a batch trimmed to ten positions have the mask's shape by accident: a second
    axis that is fixed in the graph is no sequence axis if the mask's own is free.
    """
    lengths = [v.shape[1] for v in session.get_inputs() if v.name == mask_name]
    free = any(not isinstance(length, int) for length in lengths)
    return {
        value.name
        for value in session.get_outputs()
        if not (free and len(value.shape) > 1 and isinstance(value.shape[1], int))
    }


def _misfit(declared: ort.NodeArg, array: Array) -> str | None:
    dtype, shape = _dtype_name(declared), declared.shape
    if str(array.dtype) != dtype:
        return f"nothing is cast silently, convert the array to {dtype}"
    if not shape:  # ONNX Runtime says the same of a scalar and of an input of unknown rank
        return None
    if array.ndim != len(shape):
        return f"it has {array.ndim} axes instead of {len(shape)}"
    if isinstance(shape[0], int) and len(array) % shape[0]:
        return f"the model's batch is fixed, give a multiple of {shape[0]} samples"
    for axis in range(1, len(shape)):
        if isinstance(shape[axis], int) and array.shape[axis] != shape[axis]:
            return f"axis {axis} is {array.shape[axis]} instead of {shape[axis]}"
    return None


def _dtype_name(value: ort.NodeArg) -> str:
    name = str(value.type).removeprefix("tensor(").removesuffix(")")
    return _NUMPY_NAMES.get(name, name)


def _shape_text(shape: list[int | str | None] | tuple[int, ...]) -> str:
    return f"[{', '.join('?' if dim is None else str(dim) for dim in shape)}]"
