"""Samples held against a model, and cut into batches that it takes.

Nothing is cast: a model that is fed something else than its users feed it proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import onnxruntime as ort

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.runtime.samples import Batch, Samples

POSITIONS = 512
"""So many at a time where values of all layers are looked at: they are what memory goes by."""

_NUMPY_NAMES = {"float": "float32", "double": "float64"}


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
        wanted = f"{dtype_name(value)} {_shape_text(value.shape)}"
        if name not in samples.inputs:
            raise DataError(
                f"{samples.origin}: the model's input {name!r} ({wanted}) is missing: add the "
                f"array to {', '.join(samples.inputs)}"
            )
        array = samples.inputs[name]
        misfit = _misfit(value, array, name in samples.constants)
        if misfit is not None:
            raise DataError(
                f"{samples.origin}: input {name!r} must be {wanted}, found {array.dtype} "
                f"{_shape_text(array.shape)}: {misfit}"
            )


def model_batches(
    session: ort.InferenceSession,
    samples: Samples,
    batch_size: int,
    positions: int | None = None,
    multiple: int = 1,
) -> Iterator[Batch]:
    """Batches that the model accepts.

    They have ``batch_size`` samples unless the graph fixes the batch. Padding is cut off unless the
    graph fixes the length, or a constant goes along with it.

    Args:
        session: the model.
        samples: what :func:`check_samples` let pass.
        batch_size: at most so many samples at a time.
        positions: at most so many positions at a time, where padding can be cut off and the graph
            does not fix the batch; None for any number.
        multiple: of which lengths are a multiple, where padding can be cut off.
    """
    shapes = {value.name: value.shape for value in session.get_inputs() if value.shape}
    sampled = {name: shape for name, shape in shapes.items() if name not in samples.constants}
    fixed = fixed_batch(session, samples)
    size = fixed or batch_size
    mask_name = samples.mask_name
    if mask_name is None or not _can_trim(shapes, samples):
        for batch in replace(samples, mask_name=None).batches(size):
            mask = None if mask_name is None else batch.feeds[mask_name].astype(bool)
            yield replace(batch, mask=mask)
        return
    # Heads, say, that are as many as positions: an axis that the graph fixes is no length.
    untrimmed = [n for n, shape in sampled.items() if len(shape) > 2 and isinstance(shape[1], int)]
    yield from samples.batches(size, untrimmed, None if fixed else positions, multiple)


def fixed_batch(session: ort.InferenceSession, samples: Samples) -> int | None:
    """How many samples the graph takes at a time; None where it takes any number."""
    declared = (v.shape for v in session.get_inputs() if v.name not in samples.constants)
    return min((s[0] for s in declared if s and isinstance(s[0], int)), default=None)


def outputs_by_position(session: ort.InferenceSession, mask_name: str | None) -> set[str]:
    """Outputs that the padding mask applies to where their first two axes have its shape.

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


def dtype_name(value: ort.NodeArg) -> str:
    """The NumPy name of what ``value`` holds."""
    name = str(value.type).removeprefix("tensor(").removesuffix(")")
    return _NUMPY_NAMES.get(name, name)


def _can_trim(shapes: dict[str, list[int | str | None]], samples: Samples) -> bool:
    """Whether batches may be shorter than the mask ``[samples, T]``.

    Padding is cut off second axes alone. So nothing may have T in another place, unless the graph
    fixes it there (the cross attention's past ``[samples, heads, T, D]``, positions ``[T]``).
    """
    assert samples.mask_name is not None
    length = samples.inputs[samples.mask_name].shape[1]
    for name, shape in shapes.items():
        constant = name in samples.constants
        if not constant and len(shape) == 2 and shape[1] == length:
            return False
        elsewhere = range(0 if constant else 2, len(shape))
        sizes = samples.inputs[name].shape
        if any(sizes[axis] == length and not isinstance(shape[axis], int) for axis in elsewhere):
            return False
    return True


def _misfit(declared: ort.NodeArg, array: Array, constant: bool) -> str | None:
    dtype, shape = dtype_name(declared), declared.shape
    if str(array.dtype) != dtype:
        return f"nothing is cast silently, convert the array to {dtype}"
    if not shape:  # ONNX Runtime says the same of a scalar and of an input of unknown rank
        return None
    if array.ndim != len(shape):
        return f"it has {array.ndim} axes instead of {len(shape)}"
    if isinstance(shape[0], int) and not constant and len(array) % shape[0]:
        return f"the model's batch is fixed, give a multiple of {shape[0]} samples"
    for axis in range(0 if constant else 1, len(shape)):
        if isinstance(shape[axis], int) and array.shape[axis] != shape[axis]:
            return f"axis {axis} is {array.shape[axis]} instead of {shape[axis]}"
    return None


def _shape_text(shape: list[int | str | None] | tuple[int, ...]) -> str:
    return f"[{', '.join('?' if dim is None else str(dim) for dim in shape)}]"
