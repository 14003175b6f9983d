"""A graph's adjoint: gradients of its outputs by inputs or inner values, by ONNX Runtime.

``onnx-ad`` turns a graph into one that also computes ``Σ_o ⟨seed_o, ∂o/∂v⟩`` for values v. On the
way there and back:

1. The graph is *prepared* (:func:`prepared`): in single precision, in a recent opset, with
   operators of ONNX in place of fused ones. Slices become gathers, and padding is written out.
2. An inner value v becomes ``v + d`` and is differentiated by the input d; afterwards the additions
   are taken out again.
3. Weights in files are inputs meanwhile: nobody reads them, and none of the copies has them.
4. What no output depends on is taken out: ``onnx-ad`` differentiates by every operand on the way,
   also by constants that nobody asked about. Gradients by the weights of a 6-layer encoder,
   ``[B, K, N]`` numbers for each product, were more than half of its backward pass.

Many rules of ``onnx-ad`` (for convolutions, concatenations, slices) have to know sizes that a graph
with dynamic axes does not tell. A graph that cannot be differentiated with its axes open is
differentiated at the sizes that it is fed (:mod:`~pipeline.evidence.value_shapes`), anew for other
ones.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ad
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import ModelFileError, NotDifferentiableError
from compress_onnx.pipeline.evidence.conv_padding import write_out_pads
from compress_onnx.pipeline.evidence.fused_operators import write_out_fused
from compress_onnx.pipeline.evidence.opset import RECENT, in_recent_opset, opset_of
from compress_onnx.pipeline.evidence.precision import in_float32, is_float32
from compress_onnx.pipeline.evidence.shifts import add_shifts, shift_of
from compress_onnx.pipeline.evidence.slices import gather_slices
from compress_onnx.pipeline.evidence.value_shapes import declare_sizes, shapes_of
from compress_onnx.pipeline.runtime.inner_values import expose
from compress_onnx.pipeline.runtime.protobuf import serialized
from compress_onnx.pipeline.runtime.session import SessionSpec, one_line, open_session, run

Float32 = NDArray[np.float32]
Values = dict[str, Array]
Gradients = dict[str, Float32]

_GRADIENT = "gradient."
_SIZES_KEPT = 4

logger = logging.getLogger(__name__)


def prepared(proto: onnx.ModelProto) -> onnx.ModelProto:
    """``proto``, which is used up, in the words that ``onnx-ad`` knows.

    It computes the same. Inputs and outputs keep their names; floats among them are float32.
    """
    in_float32(proto)
    proto = in_recent_opset(proto)
    write_out_fused(proto)
    return proto


def is_prepared(proto: onnx.ModelProto) -> bool:
    """Whether :func:`prepared` need not read the weights of ``proto``."""
    return opset_of(proto) >= RECENT and is_float32(proto)


def in_single(arrays: Mapping[str, Array]) -> Values:
    """What a prepared graph is fed: all floats as float32."""
    return {
        name: _single(array) if array.dtype.kind == "f" else array for name, array in arrays.items()
    }


def _single(array: Array) -> Float32:
    return array.astype(np.float32, copy=False)


class Adjoint:
    """Runs a graph forwards and backwards.

    Args:
        graph: a :func:`prepared` graph; unchanged.
        by: the values to differentiate by: float inputs, or what nodes of the main graph compute.
        of: the float outputs that are differentiated.
        beside: values that are returned beside the gradients.
        sizes: inputs that hold sizes; where the graph is differentiated at those that it is fed,
            they are constants.
        advice: what to do where there are no gradients, for the message.
        spec: how it runs.
        finish: changes the graph in place after it was differentiated.
        data_folder: where external data of the graph lies.
    """

    def __init__(
        self,
        graph: onnx.ModelProto,
        by: Sequence[str],
        of: Sequence[str],
        *,
        beside: Iterable[str] = (),
        sizes: Collection[str] = (),
        advice: str,
        spec: SessionSpec | None = None,
        finish: Callable[[onnx.ModelProto], None] | None = None,
        data_folder: Path | None = None,
    ) -> None:
        self._graph = graph
        self._data_folder = data_folder
        self._finish = finish
        inputs = {value.name for value in graph.graph.input}
        self._reached = {name: name if name in inputs else shift_of(name) for name in by}
        self._of = list(of)
        self._beside = list(dict.fromkeys(beside))
        self._sizes = sizes
        self._advice = advice
        self._spec = spec
        self._sized: dict[object, ort.InferenceSession] = {}
        self._open: ort.InferenceSession | None = None
        try:
            self._open = self._session(graph)
        except NotDifferentiableError as error:
            logger.info("differentiating at fixed sizes: %s", error)

    def run(
        self, feeds: Mapping[str, Array], seeds: Mapping[str, Array]
    ) -> tuple[Gradients, Values]:
        """One pass there and back.

        Args:
            feeds: the inputs of the graph.
            seeds: the adjoint that each differentiated output starts from, of its shape.

        Returns:
            By name, the gradients, each of its value's shape, and the values asked for beside.

        Raises:
            NotDifferentiableError: an operator has no gradient, ONNX Runtime cannot compute it, or
                the graph is too large.
        """
        feeds = in_single(feeds)
        if self._open is not None:
            try:
                return self._run(self._open, feeds, seeds)
            except ModelFileError as error:
                logger.info("differentiating at fixed sizes: %s", error)
                self._open = None
        settled = {name: feeds[name] for name in self._sizes}
        feeds = {name: array for name, array in feeds.items() if name not in settled}
        try:
            return self._run(self._at_sizes(feeds, settled), feeds, seeds)
        except ModelFileError as error:
            raise self._refusal(error) from error

    def _run(
        self, session: ort.InferenceSession, feeds: Values, seeds: Mapping[str, Array]
    ) -> tuple[Gradients, Values]:
        # Behind the axes of its value, each seed and each gradient has one for directions.
        starts = {f"{_GRADIENT}{name}": seed[..., None] for name, seed in in_single(seeds).items()}
        names = {value: f"{_GRADIENT}{reached}" for value, reached in self._reached.items()}
        values = run(session, {**feeds, **starts}, [*names.values(), *self._beside])
        gradients = {value: _single(values[name][..., 0]) for value, name in names.items()}
        return gradients, {name: values[name] for name in self._beside}

    def _at_sizes(self, feeds: Values, settled: Values) -> ort.InferenceSession:
        key = (
            *((name, array.shape) for name, array in sorted(feeds.items())),
            *((name, array.tobytes()) for name, array in sorted(settled.items())),
        )
        if key not in self._sized:
            graph = _copy(self._graph)
            _remove_inputs(graph, settled)
            graph.graph.initializer.extend(
                onnx.numpy_helper.from_array(array, name) for name, array in settled.items()
            )
            declare_sizes(graph, feeds, self._data_folder)
            while len(self._sized) >= _SIZES_KEPT:
                del self._sized[next(iter(self._sized))]
            self._sized[key] = self._session(graph)
        return self._sized[key]

    def _session(self, graph: onnx.ModelProto) -> ort.InferenceSession:
        try:
            adjoint = _differentiated(graph, self._reached, self._of)
            if self._finish is not None:
                self._finish(adjoint)
            expose(adjoint, self._beside)
            return open_session(
                without_dead_nodes(adjoint), self._spec, data_folder=self._data_folder
            )
        except Exception as error:  # onnx-ad raises many classes on graphs that it cannot read
            raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> NotDifferentiableError:
        # ONNX Runtime refuses what was made of the model, not the model: leave that part out.
        reason = error.__cause__ if isinstance(error, ModelFileError) else None
        return NotDifferentiableError(
            f"no gradient of this graph can be computed ({one_line(reason or error)}): "
            f"{self._advice}"
        )


def _differentiated(
    graph: onnx.ModelProto, reached: Mapping[str, str], of: Sequence[str]
) -> onnx.ModelProto:
    """The adjoint graph by the inputs that reach each value: itself, or its shift."""
    if not of:
        raise ValueError("no output is a float")
    graph = _copy(graph)
    gather_slices(graph)
    write_out_pads(graph)
    shifted = [value for value, name in reached.items() if value != name]
    _add_shift_inputs(graph, shifted)
    outside = _take_outside(graph)
    adjoint: onnx.ModelProto = onnx_ad.reverse(
        graph,
        inputs=list(reached.values()),
        outputs=list(of),
        prefix=_GRADIENT,
        dim="directions",
        layout="onnx",
    )
    _remove_shifts(adjoint, {reached[value]: value for value in shifted})
    _remove_inputs(adjoint, outside)
    adjoint.graph.initializer.extend(outside.values())
    return adjoint


def _take_outside(graph: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Take the weights in files out of ``graph``, in place: inputs that ``onnx-ad`` cannot read."""
    outside: dict[str, onnx.TensorProto] = {}
    inside: list[onnx.TensorProto] = []
    for tensor in graph.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            inside.append(tensor)
            continue
        outside[tensor.name] = onnx.TensorProto()
        outside[tensor.name].CopyFrom(tensor)
    declared = {value.name for value in graph.graph.input}
    graph.graph.input.extend(
        onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
        for name, tensor in outside.items()
        if name not in declared
    )
    inside = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in inside]
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(inside)
    return outside


def _add_shift_inputs(graph: onnx.ModelProto, values: Sequence[str]) -> None:
    """Shift ``values``, in place, by inputs of the same shapes."""
    shapes = shapes_of(graph)
    for value, shift in add_shifts(graph, values).items():
        if value not in shapes:
            raise ValueError(f"the rank of {value} is unknown")
        graph.graph.input.append(
            onnx.helper.make_tensor_value_info(shift, onnx.TensorProto.FLOAT, shapes[value])
        )


def _remove_shifts(adjoint: onnx.ModelProto, values: Mapping[str, str]) -> None:
    """Take the additions out again, in place: ``v' = v``, and the inputs, by shift, go."""
    for node in adjoint.graph.node:
        if node.op_type == "Add" and node.name in values:
            node.op_type = "Identity"
            del node.input[1]
            continue
        for index, name in enumerate(node.input):
            if name in values:
                node.input[index] = values[name]
    _remove_inputs(adjoint, values)


def _remove_inputs(adjoint: onnx.ModelProto, names: Container[str]) -> None:
    kept = [value for value in adjoint.graph.input if value.name not in names]
    del adjoint.graph.input[:]
    adjoint.graph.input.extend(kept)


def without_dead_nodes(proto: onnx.ModelProto) -> bytes:
    """The serialized model with only those nodes and initializers that its outputs need."""
    model = ir.from_proto(proto)
    RemoveUnusedNodesPass()(model)
    return serialized(ir.to_proto(model))


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy
