"""Shift the outputs of linear sites: ``y' = y + d`` with d an input of the graph.

The way into the middle of a graph, for whoever disturbs it there. The inputs declare no rank, and
their default is a single zero, which broadcasts to any shape: the shifted model runs like the
original where none is fed, and nobody has to know the shape of y.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir

from compress_onnx.graph_passes.sites.linear_site import LinearSite

_FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}
_LARGE_BYTES = 1024
_ALIGNED_BYTES = 64


def can_shift(site: LinearSite) -> bool:
    """Whether the site's output is ``[..., N]``, at the top level."""
    return not (site.nested or site.on_left)


def self_contained(model: ir.Model, data_folder: Path) -> onnx.ModelProto:
    """A copy of ``model`` with all weights inside and without inferred shapes."""
    proto = ir.to_proto(model)
    onnx.load_external_data_for_model(proto, str(data_folder))
    del proto.graph.value_info[:]
    return proto


def referring(model: ir.Model, data_folder: Path) -> onnx.ModelProto:
    """A copy of ``model`` without inferred shapes; weights in files stay there, integers do not."""
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    for tensor in proto.graph.initializer:
        outside = tensor.data_location == onnx.TensorProto.EXTERNAL
        if outside and tensor.data_type not in _FLOATS:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(data_folder))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    return proto


@contextmanager
def weights_outside(
    proto: onnx.ModelProto, data_folder: Path
) -> Iterator[tuple[onnx.ModelProto, Path]]:
    """``proto`` with its large weights in files, and the folder of these.

    A graph is copied and serialized many times on its way to a session: without its weights that
    costs nothing. ONNX Runtime takes one folder: where there are files already, no more is moved.

    Args:
        proto: used up; what comes cannot be run once the context has ended.
        data_folder: where its external data lies.
    """
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in proto.graph.initializer):
        yield proto, data_folder
        return
    with TemporaryDirectory(prefix="compress-onnx-") as folder:
        _move_all(proto, Path(folder) / "weights.bin")
        proto = without_slack(proto)
        yield proto, Path(folder)


def without_slack(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy. A message keeps the memory of all that was ever in it; the copy's is what it has."""
    copy: onnx.ModelProto = onnx.ModelProto.FromString(proto.SerializeToString())
    return copy


def _move_all(proto: onnx.ModelProto, path: Path) -> None:
    with path.open("wb") as stream:
        for tensor in proto.graph.initializer:
            if tensor.data_type in _FLOATS and len(tensor.raw_data) >= _LARGE_BYTES:
                _move(tensor, stream, path.name)


def _move(tensor: onnx.TensorProto, stream: BinaryIO, location: str) -> None:
    """Write the numbers of ``tensor`` to the end of ``stream``, and let it refer to them."""
    stream.write(bytes(-stream.tell() % _ALIGNED_BYTES))
    entries = {"location": location, "offset": stream.tell(), "length": len(tensor.raw_data)}
    stream.write(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))


def shift_outputs(proto: onnx.ModelProto, sites: Sequence[LinearSite]) -> dict[str, str]:
    """Add a shift to the output of each of ``sites``, in place.

    Returns:
        The name of the shift input by site name.
    """
    values = {site.name: site.node.outputs[0].name or "" for site in sites}
    shifts = add_shifts(proto, values.values())
    for site in sites:
        kind = site.weight.initializer.dtype
        assert kind is not None
        name = shifts[values[site.name]]
        declared = proto.graph.input.add(name=name)
        declared.type.tensor_type.elem_type = int(kind)
        zero = np.zeros((), kind.numpy())
        proto.graph.initializer.append(onnx.numpy_helper.from_array(zero, name))
    return {site: shifts[value] for site, value in values.items()}


def shift_of(value: str) -> str:
    """The name of the shift of ``value``."""
    return f"{value}.shift"


def add_shifts(proto: onnx.ModelProto, values: Iterable[str]) -> dict[str, str]:
    """Put an addition behind each of ``values``, in place.

    The node that computes a value keeps its place; the addition, named after the shift, is next.

    Returns:
        The name of the shift by value; nothing declares it yet.
    """
    shifts = {value: shift_of(value) for value in values}
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        nodes.append(copy)
        for index, value in enumerate(node.output):
            if value in shifts:
                copy.output[index] = f"{value}.unshifted"
                operands = [copy.output[index], shifts[value]]
                nodes.append(onnx.helper.make_node("Add", operands, [value], shifts[value]))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return shifts
