"""Inputs of the right shape for any graph, to measure its latency with.

Sizes: a fixed dimension is kept; a symbolic first axis is the batch; every other symbol is a
length. One symbol has one size in all inputs, and a sum of symbols (``past + sequence``, as
exporters of decoders write it) is the sum of their sizes.

Values: rows of real samples where there are some, with the padding taken out, because padding
costs as much time as words do; otherwise random values that are safe to look up in a table.

What a model declares also says which arrays are no samples but constants
(:func:`constants_among`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships none

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import DataError, ModelFileError
from compress_onnx.pipeline.runtime.padding import repeated_positions
from compress_onnx.pipeline.runtime.samples import Samples

Dimension = int | str | None

# Small enough for the vocabulary of any embedding.
_MAX_TOKEN_ID = 10


@dataclass(frozen=True)
class ModelInput:
    """A tensor that a model takes; a dimension is a size, a symbol, or None when anonymous."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[Dimension, ...]


def load_structure(model: Path) -> onnx.ModelProto:
    """Read a model without its external weights.

    Raises:
        ModelFileError: the file cannot be read or is no ONNX model.
    """
    try:
        return onnx.load(model, load_external_data=False)
    except OSError as error:
        raise ModelFileError(f"cannot read the model {model}: {error.strerror}") from error
    except DecodeError as error:
        raise ModelFileError(f"{model} is damaged or no ONNX model: export it again") from error


def model_inputs(model: onnx.ModelProto) -> tuple[ModelInput, ...]:
    """The inputs that a caller must feed (initializers with the name of an input are defaults).

    Raises:
        DataError: an input is no tensor of numbers, or does not even say how many axes it has.
    """
    defaults = {tensor.name for tensor in model.graph.initializer}
    return tuple(_model_input(value) for value in model.graph.input if value.name not in defaults)


def _model_input(value: onnx.ValueInfoProto) -> ModelInput:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
        raise _cannot_invent(value.name, "is no tensor of known rank")
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    if dtype.kind not in "iufb" or dtype.isbuiltin != 1:
        raise _cannot_invent(
            value.name, f"holds {onnx.TensorProto.DataType.Name(tensor.elem_type)}"
        )
    return ModelInput(value.name, dtype, declared_shape(value))


def declared_shape(value: onnx.ValueInfoProto) -> tuple[Dimension, ...]:
    """The sizes and symbols that a graph's input or output declares."""
    return tuple(map(_dimension, value.type.tensor_type.shape.dim))


def _dimension(declared: onnx.TensorShapeProto.Dimension) -> Dimension:
    if declared.HasField("dim_value") and declared.dim_value >= 0:
        return declared.dim_value
    return declared.dim_param or None  # some exporters write an open dimension as -1


def _cannot_invent(name: str, why: str) -> DataError:
    return DataError(f"cannot make up data for the input {name!r}, which {why}: pass --inputs")


def constants_among(arrays: Mapping[str, Array], declared: Sequence[ModelInput]) -> frozenset[str]:
    """Which of ``arrays`` have no axis of samples, by what the model declares.

    An array is such a constant if it has no axes at all, or if it has exactly the declared shape
    and its first axis cannot be the batch, because

    1. the model fixes its size, but leaves the first axis of another input free, or the other
       arrays have another number of samples (``use_cache_branch [1]``, a table ``[16, 4]``);
    2. the model calls it as it calls a later axis of another input, and the sizes agree
       (``cache_position [sequence]`` beside ``input_ids [batch, sequence]``).

    Args:
        arrays: by input name; names that the model does not know are never constants.
        declared: what :func:`model_inputs` returned.
    """
    known = [i for i in declared if i.name in arrays and _fits(i, arrays[i.name])]
    free = any(i.shape and not isinstance(i.shape[0], int) for i in declared)
    lengths = Counter(len(array) for array in arrays.values() if array.ndim)
    samples = max(lengths, key=lambda length: (lengths[length], length), default=0)
    later = {
        (dimension, size)
        for i in known
        for dimension, size in zip(i.shape[1:], arrays[i.name].shape[1:], strict=True)
    }

    def is_constant(model_input: ModelInput) -> bool:
        if not model_input.shape:
            return True
        first, length = model_input.shape[0], len(arrays[model_input.name])
        if isinstance(first, int):
            return free or length != samples
        return first is not None and (first, length) in later

    scalars = {name for name, array in arrays.items() if array.ndim == 0}
    return frozenset(scalars | {i.name for i in known if is_constant(i)})


def _fits(model_input: ModelInput, array: Array) -> bool:
    """Whether ``array`` has as many axes as declared, and the sizes that are fixed."""
    shape = model_input.shape
    return array.ndim == len(shape) and all(
        size == dimension
        for dimension, size in zip(shape, array.shape, strict=True)
        if isinstance(dimension, int)
    )


def synthetic_feeds(
    inputs: Sequence[ModelInput],
    *,
    batch: int,
    length: int,
    seed: int,
    samples: Samples | None = None,
) -> dict[str, Array]:
    """Make one array for each input.

    Args:
        inputs: what :func:`model_inputs` returned.
        batch: the size of a symbolic first axis.
        length: the size of the other symbolic axes; with ``samples``, of the mask's axis.
        seed: of the random values.
        samples: rows to use, repeated or cut to ``batch`` and ``length``.

    Raises:
        DataError: ``samples`` lacks an input, or has another number of axes or kind of numbers.
    """
    if samples is not None:
        return {i.name: _from_samples(i, samples, batch, length) for i in inputs}
    sizes = _symbol_sizes(inputs, batch)
    rng = np.random.default_rng(seed)
    return {i.name: _invented(i, _shape(i, sizes, batch, length), rng) for i in inputs}


def _symbol_sizes(inputs: Sequence[ModelInput], batch: int) -> dict[str, int]:
    return {i.shape[0]: batch for i in inputs if i.shape and isinstance(i.shape[0], str)}


def _shape(
    model_input: ModelInput, sizes: dict[str, int], batch: int, length: int
) -> tuple[int, ...]:
    def size(axis: int, dimension: Dimension) -> int:
        if isinstance(dimension, int):
            return dimension
        if dimension is None:
            return length if axis else batch
        terms = [term.strip() for term in dimension.split("+")]
        return sum(int(t) if t.isdecimal() else sizes.get(t, length) for t in terms)

    return tuple(size(axis, dimension) for axis, dimension in enumerate(model_input.shape))


def _invented(model_input: ModelInput, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    name, dtype = model_input.name.lower(), model_input.dtype
    if "mask" in name or dtype.kind == "b":
        return np.ones(shape, dtype)
    if dtype.kind == "f":
        return np.asarray(rng.standard_normal(shape)).astype(dtype)
    if "token_type" in name or "segment" in name:
        return np.zeros(shape, dtype)
    if "position" in name and shape:
        return np.broadcast_to(np.arange(shape[-1], dtype=dtype), shape).copy()
    return np.asarray(rng.integers(_MAX_TOKEN_ID, size=shape)).astype(dtype)


def _from_samples(model_input: ModelInput, samples: Samples, batch: int, length: int) -> Array:
    name, shape = model_input.name, model_input.shape
    if name not in samples.inputs:
        raise DataError(
            f"{samples.origin}: there is no array for the model's input {name!r}, "
            f"only for {', '.join(samples.inputs)}"
        )
    array = samples.inputs[name]
    if array.ndim != len(shape) or array.dtype.kind != model_input.dtype.kind:
        raise DataError(
            f"{samples.origin}: input {name!r} is {array.dtype} with {array.ndim} axes, "
            f"the model takes {model_input.dtype} with {len(shape)}"
        )
    if name in samples.constants:
        return np.array(array, dtype=model_input.dtype)
    rows = np.arange(shape[0] if isinstance(shape[0], int) else batch) % len(samples)
    chosen = array[rows]
    if samples.mask_name is not None and array.shape == samples.inputs[samples.mask_name].shape:
        width = shape[1] if isinstance(shape[1], int) else length
        mask = samples.inputs[samples.mask_name][rows].astype(bool)
        chosen = np.take_along_axis(chosen, repeated_positions(mask, width), axis=1)
    return np.ascontiguousarray(chosen, dtype=model_input.dtype)
