"""How large the values inside a model become on real data: whether float16 can hold them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.rewriting.schemas import value_types
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.runtime.batches import check_samples, model_batches
from compress_onnx.pipeline.runtime.protobuf import OUTSIDE, serialized
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import open_session, run

SAMPLES = 128
"""How many samples are looked at, spread over all there are."""

_LARGEST, _SQUARES, _STEP = "largest of", "squares of", "step of measuring"
_AXES_AS_INPUT = 18
"""The opset from which ReduceMean reads its axes."""


@dataclass(frozen=True)
class Magnitudes:
    """Over all samples, padding included; nothing about values inside nested graphs.

    Attributes:
        largest: the largest finite magnitude of each float32 value, by name.
        mean_squares: the largest mean square of a row, of the values that were asked for.
    """

    largest: Mapping[str, float]
    mean_squares: Mapping[str, float]


def magnitudes(
    model: ir.Model,
    data_folder: Path,
    samples: Samples,
    settings: RunSettings,
    rows: Collection[str] = (),
) -> Magnitudes:
    """How large the values of the main graph become.

    Args:
        model: the graph; never changed.
        data_folder: where its external data lies.
        samples: the data.
        settings: how it is run.
        rows: names of values whose rows, along the last axis, have their squares measured too.

    Raises:
        DataError: the samples do not fit the model.
        ModelFileError: the model cannot be run.
    """
    names = [
        value.name
        for value, kind in value_types(model).items()
        if kind == ir.DataType.FLOAT and value.name
        if (maker := value.producer()) is not None and maker.graph is model.graph
    ]
    measuring = _Measuring(model)
    for name in names:
        measuring.reduce(name, f"{_LARGEST} {name}")
        if name in rows:
            measuring.reduce(measuring.mean_square(name), f"{_SQUARES} {name}")
    session = open_session(measuring.model(), settings.session, data_folder=data_folder)
    few = samples.select(np.linspace(0, len(samples) - 1, min(SAMPLES, len(samples))).astype(int))
    check_samples(session, few)
    found: dict[str, float] = {}
    done = 0
    with settings.progress.step("magnitudes", len(few)) as update:
        for batch in model_batches(session, few, settings.batch_size):
            for name, value in run(session, batch.feeds).items():
                found[name] = max(found.get(name, 0.0), float(value))
            done += len(batch.index)
            update(done)
    largest, mean_squares = (
        {n.removeprefix(f"{what} "): v for n, v in found.items() if n.startswith(f"{what} ")}
        for what in (_LARGEST, _SQUARES)
    )
    return Magnitudes(largest, mean_squares)


class _Measuring:
    """The model with reductions of its values for outputs."""

    def __init__(self, model: ir.Model) -> None:
        self._proto = ir.to_proto(model)
        self._opset = model.opset_imports.get("", 1)
        self._steps = count()
        del self._proto.graph.output[:]
        self._infinity = self._constant(np.array(np.inf, np.float32))
        self._nothing = self._constant(np.zeros(1, np.float32))
        self._minus_one = self._constant(np.array([-1]))

    def model(self) -> bytes:
        """The serialized model."""
        return serialized(self._proto, instead=OUTSIDE)

    def reduce(self, name: str, output: str) -> None:
        """The largest finite magnitude of ``name``; 0 where it is empty."""
        size = self._node("Abs", name)
        finite = self._node("Less", size, self._infinity)
        known = self._node("Where", finite, size, self._nothing)
        row = self._node("Reshape", known, self._minus_one)
        filled = self._node("Concat", row, self._nothing, axis=0)
        self._node("ReduceMax", filled, output=output, keepdims=0)
        kind = onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, [])
        self._proto.graph.output.append(kind)

    def mean_square(self, name: str) -> str:
        """The mean square of each row."""
        square = self._node("Mul", name, name)
        if self._opset < _AXES_AS_INPUT:
            return self._node("ReduceMean", square, axes=[-1])
        return self._node("ReduceMean", square, self._minus_one)

    def _node(
        self, op_type: str, *inputs: str, output: str = "", **attributes: int | list[int]
    ) -> str:
        output = output or f"{_STEP} {next(self._steps)}"
        node = onnx.helper.make_node(op_type, inputs, [output])
        node.attribute.extend(onnx.helper.make_attribute(n, v) for n, v in attributes.items())
        self._proto.graph.node.append(node)
        return output

    def _constant(self, array: Array) -> str:
        name = f"{_STEP} {next(self._steps)}"
        self._proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return name
