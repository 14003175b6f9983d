"""Every value inside a graph, for a few samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import onnx
import onnx.inliner
import onnx_ir as ir
import onnxruntime as ort
from onnx import numpy_helper

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.sites import naming
from compress_onnx.pipeline.files.model_file import load_model
from compress_onnx.pipeline.runtime.inner_values import expose, read_by
from compress_onnx.pipeline.runtime.protobuf import OUTSIDE, serialized
from compress_onnx.pipeline.runtime.session import Provider, SessionSpec, open_session, run


class Place(NamedTuple):
    """The ``ordinal``-th node of its operator in a module."""

    module: str
    operator: str
    ordinal: int


@dataclass(frozen=True, eq=False)
class Trace:
    """A graph and what its values are for some feeds.

    Attributes:
        graph: with local functions written out.
        values: by name: inputs, stored constants, and all that nodes compute.
        varying: names of the values that depend on an input.
    """

    graph: onnx.GraphProto
    values: Mapping[str, Array]
    varying: frozenset[str]

    @cached_property
    def producers(self) -> dict[str, int]:
        """By value, the position of the node that computes it."""
        return {
            name: place
            for place, node in enumerate(self.graph.node)
            for name in node.output
            if name
        }

    def node(self, value: str) -> onnx.NodeProto | None:
        """The node that computes ``value``; None for an input or a stored constant."""
        place = self.producers.get(value)
        return None if place is None else self.graph.node[place]

    def sources(self, node: onnx.NodeProto) -> list[str]:
        """The inputs of ``node`` that depend on the graph's, those of its branches included."""
        return [name for name in read_by(node) if name in self.varying]

    def consumers(self, value: str) -> Iterator[onnx.NodeProto]:
        """The nodes that read ``value``."""
        return (node for node in self.graph.node if value in read_by(node))

    @cached_property
    def places(self) -> dict[str, Place]:
        """By value, where it stands in the model: exporters differ in names, not in modules."""
        return places_of(self.graph)

    @cached_property
    def placed(self) -> dict[Place, str]:
        """By its place, the value."""
        return {place: name for name, place in self.places.items()}

    @property
    def outputs(self) -> list[str]:
        """Names of the graph's outputs."""
        return [value.name for value in self.graph.output]


def trace(
    model: Path,
    feeds: Mapping[str, Array],
    *,
    provider: Provider = "cpu",
    threads: int | None = None,
) -> Trace:
    """Run ``model`` once, with every value as an output and no optimization.

    Raises:
        ModelFileError: the model cannot be loaded or run.
    """
    proto = read_proto(model)
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    names = [name for node in proto.graph.node for name in node.output if name]
    outputs = {value.name for value in proto.graph.output}
    session = open_exposed(proto, names, model.parent, provider=provider, threads=threads)
    found = run(session, feeds, [*outputs, *(name for name in names if name not in outputs)])
    constants = {
        name: numpy_helper.to_array(tensor, base_dir=str(model.parent))
        for name, tensor in stored.items()
    }
    return Trace(proto.graph, {**constants, **feeds, **found}, varying_in(proto.graph))


def read_proto(model: Path) -> onnx.ModelProto:
    """The graph of a file, its external data left where it is, local functions written out.

    Raises:
        ModelFileError: the file is damaged, or has its data in another folder.
    """
    load_model(model)  # refuses both
    proto = onnx.load(model, load_external_data=False)
    return onnx.inliner.inline_local_functions(proto) if proto.functions else proto


def open_exposed(
    proto: onnx.ModelProto,
    names: Iterable[str],
    data_folder: Path,
    *,
    provider: Provider = "cpu",
    threads: int | None = None,
) -> ort.InferenceSession:
    """A session of ``proto`` without optimizations that has the values ``names`` as outputs too.

    Args:
        proto: the graph; it is left as it was.
        names: of values that its nodes compute.
        data_folder: where its external data lies.
        provider: what it runs on.
        threads: how many.

    Raises:
        ModelFileError: the model cannot be loaded.
    """
    exposed = onnx.ModelProto()
    exposed.CopyFrom(proto)
    expose(exposed, names)
    spec = SessionSpec(provider=provider, threads=threads, optimization="off")
    return open_session(serialized(exposed, instead=OUTSIDE), spec, data_folder=data_folder)


def varying_in(graph: onnx.GraphProto, but: Collection[str] = ()) -> frozenset[str]:
    """Names of the values that depend on an input, not only through the operators ``but``."""
    stored = {tensor.name for tensor in graph.initializer}
    varying = {value.name for value in graph.input} - stored
    for node in graph.node:
        if node.op_type not in but and varying.intersection(read_by(node)):
            varying.update(name for name in node.output if name)
    return frozenset(varying)


def places_of(graph: onnx.GraphProto) -> dict[str, Place]:
    """By value, where it stands in the model that the graph was exported from."""
    found: dict[str, Place] = {}
    counted: Counter[tuple[str, str]] = Counter()
    for node in graph.node:
        kind = (module_path(node), node.op_type)
        if node.output and kind[0] != node.name:
            found[node.output[0]] = Place(*kind, counted[kind])
            counted[kind] += 1
    return found


def module_path(node: onnx.NodeProto) -> str:
    """Where ``node`` stands in the module that it was exported from; its own name without that."""
    told = {entry.key: entry.value for entry in node.metadata_props}
    like = ir.Node(node.domain, node.op_type, [], name=node.name, metadata_props=told)
    return naming.module_path(like) if node.name else ""
