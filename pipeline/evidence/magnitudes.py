"""How large the values inside a model become on real data: whether float16 can hold them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from compress_onnx.graph_passes.rewriting.schemas import value_types
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.runtime.batches import check_samples, model_batches
from compress_onnx.pipeline.runtime.protobuf import OUTSIDE, serialized
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import open_session, run

SAMPLES = 128
"""How many samples are looked at, spread over all there are."""

_PREFIX = "magnitude of "


def magnitudes(
    model: ir.Model, data_folder: Path, samples: Samples, settings: RunSettings
) -> dict[str, float]:
    """The largest finite magnitude of each float32 value of the main graph, padding included.

    Args:
        model: the graph; never changed.
        data_folder: where its external data lies.
        samples: the data.
        settings: how it is run.

    Returns:
        By name; nothing about values inside nested graphs.

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
    session = open_session(_measuring(model, names), settings.session, data_folder=data_folder)
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
    return {name.removeprefix(_PREFIX): value for name, value in found.items()}


def _measuring(model: ir.Model, names: list[str]) -> bytes:
    """The serialized model with the magnitudes as its outputs, by name."""
    proto = ir.to_proto(model)
    graph = proto.graph
    del graph.output[:]
    constants: Mapping[str, np.ndarray] = {
        "infinity": np.array(np.inf, np.float32),
        "nothing": np.zeros(1, np.float32),
        "flat": np.array([-1]),
    }
    graph.initializer.extend(
        onnx.numpy_helper.from_array(array, f"constant {_PREFIX}{name}")
        for name, array in constants.items()
    )
    infinity, nothing, flat = (f"constant {_PREFIX}{name}" for name in constants)
    for name in names:
        size, finite, known, row, filled = (f"{_PREFIX}{step} {name}" for step in range(5))
        graph.node.extend(
            [
                onnx.helper.make_node("Abs", [name], [size]),
                onnx.helper.make_node("Less", [size, infinity], [finite]),
                onnx.helper.make_node("Where", [finite, size, nothing], [known]),
                onnx.helper.make_node("Reshape", [known, flat], [row]),
                # A value may be empty, of which there is no largest.
                onnx.helper.make_node("Concat", [row, nothing], [filled], axis=0),
                onnx.helper.make_node("ReduceMax", [filled], [_PREFIX + name], keepdims=0),
            ]
        )
        graph.output.append(
            onnx.helper.make_tensor_value_info(_PREFIX + name, onnx.TensorProto.FLOAT, [])
        )
    return serialized(proto, instead=OUTSIDE)
