"""Run a model in segments, so that few of its weights are in memory at a time.

The nodes of the main graph, in order, are cut into segments whose weights take about
:data:`SEGMENT_BYTES`. Each runs for all batches before the next one begins; what is alive at the
cut between them (what later nodes read, and what the model returns) waits on a shelf. Models from
:data:`LARGE_BYTES` on are run so.

Rules:

1. A cut is where the fewest values are alive, of all places at which the segment would have between
   half of its bytes and all of them: in transformers, between two blocks.
2. A weight belongs to the segment of the first node that reads it; one that is larger than a
   segment has one to itself.
3. What is computed of the model's inputs without any matrix (masks, positions, sizes, constants) is
   computed again by each segment that reads it: so sizes are known there as in the whole graph.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from compress_onnx.graph_passes.arrays import Array, Stored
from compress_onnx.pipeline.evidence.value_shapes import Shape, shapes_of
from compress_onnx.pipeline.files.model_file import weight_bytes
from compress_onnx.pipeline.files.original import Original
from compress_onnx.pipeline.files.shelf import Shelf
from compress_onnx.pipeline.runtime.memory import return_freed
from compress_onnx.pipeline.runtime.protobuf import serialized
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run

LARGE_BYTES = 200_000_000
"""Of weights, from which on a model runs in segments."""

SEGMENT_BYTES = 64_000_000
"""Of the weights of a segment."""

Values = Mapping[str, Array]


@dataclass(frozen=True)
class Segment:
    """The nodes from ``start`` to ``stop`` of a graph.

    Attributes:
        start, stop: places in the graph.
        borrowed: places of nodes before it that it runs once more (rule 3).
        inputs: what it reads of what was computed or fed before.
        outputs: what it computes and later nodes, the model's caller or others want.
    """

    start: int
    stop: int
    borrowed: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def nodes(self, graph: onnx.GraphProto) -> Sequence[onnx.NodeProto]:
        """Those of ``graph`` that are its own."""
        nodes: Sequence[onnx.NodeProto] = graph.node[self.start : self.stop]
        return nodes


class Segments:
    """The segments of a graph, and what is alive at each cut, batch by batch.

    Args:
        proto: the graph, large weights in files.
        data_folder: where these lie.
        feeds: the inputs of each batch.
        spec: how it runs.
        kept: values that are kept beside those that later nodes read, such as outputs.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        data_folder: Path,
        feeds: Sequence[Values],
        spec: SessionSpec,
        *,
        kept: Collection[str] = (),
    ) -> None:
        self._proto = proto
        self._data_folder = data_folder
        self._spec = spec
        self._shapes = shapes_of(proto)
        self._shelf = Shelf()
        self._feeds = feeds
        self._segments = tuple(_segments(proto.graph, kept))
        self._values: list[dict[str, Stored]] = [{} for _ in feeds]

    def __len__(self) -> int:
        """How many there are."""
        return len(self._segments)

    def run(self, looked: Collection[str] = ()) -> Iterator[tuple[Segment, Iterator[Values]]]:
        """Run segment by segment, each for all batches.

        Args:
            looked: values that somebody looks at once, as they are computed.

        Yields:
            Each segment, with what it reads and computes in each batch, which is to be taken to the
            end before the next segment.
        """
        for segment in self._segments:
            yield segment, self._run(segment, looked)
            return_freed()

    def _run(self, segment: Segment, looked: Collection[str]) -> Iterator[Values]:
        made = {name for node in segment.nodes(self._proto.graph) for name in node.output}
        outputs = [*dict.fromkeys((*segment.outputs, *sorted(made & set(looked))))]
        session = None
        for batch in range(len(self._feeds)):
            given = self.values(batch, segment.inputs)
            found: Values = {}
            if outputs:
                session = session or self._session(segment, given, outputs)
                found = run(session, given, outputs)
            for name in segment.outputs:
                self._values[batch][name] = self._shelf.keep(found[name])
            yield {**given, **found}

    def backwards(self) -> Iterator[Segment]:
        """The segments from the last to the first, for who goes back."""
        return reversed(self._segments)

    def values(self, batch: int, names: Collection[str]) -> dict[str, Array]:
        """Values by name, of what was fed, or kept by segments that have run."""
        fed, found = self._feeds[batch], self._values[batch]
        return {name: np.asarray(fed[name] if name in fed else found[name]) for name in names}

    def model(self, segment: Segment, values: Values, outputs: Sequence[str]) -> onnx.ModelProto:
        """``segment`` as a model of its own, whose inputs look like ``values``."""
        places = [*segment.borrowed, *range(segment.start, segment.stop)]
        return segment_model(self._proto, places, values, outputs, self._shapes)

    def _session(
        self, segment: Segment, values: Values, outputs: Sequence[str]
    ) -> ort.InferenceSession:
        model = serialized(self.model(segment, values, outputs))
        return open_session(model, self._spec, data_folder=self._data_folder)


def is_large(original: Original) -> bool:
    """Whether a model had better run in segments."""
    return weight_bytes(original.model) >= LARGE_BYTES


def segment_model(
    proto: onnx.ModelProto,
    places: Sequence[int],
    values: Values,
    outputs: Sequence[str],
    shapes: Mapping[str, Shape] | None = None,
) -> onnx.ModelProto:
    """The nodes at ``places`` as a model, with inputs and outputs that look like ``values``.

    Args:
        proto: the graph, of which large weights are in files.
        places: of the nodes, in order.
        values: what is fed, and perhaps more.
        outputs: what it returns.
        shapes: of values, where they are known; else axes are open.
    """
    nodes = [proto.graph.node[place] for place in places]
    made = {name for node in nodes for name in node.output}
    reads, shapes = reads_of(nodes), shapes or {}
    declared = {
        name: onnx.helper.make_tensor_value_info(
            name,
            onnx.helper.np_dtype_to_tensor_dtype(value.dtype),
            shapes.get(name, (None,) * value.ndim),
        )
        for name, value in values.items()
    }
    graph = onnx.helper.make_graph(
        nodes,
        "segment",
        [value for name, value in declared.items() if name in reads - made],
        [declared.get(name, onnx.ValueInfoProto(name=name)) for name in outputs],
        [tensor for tensor in proto.graph.initializer if tensor.name in reads],
    )
    return onnx.helper.make_model(
        graph,
        opset_imports=proto.opset_import,
        ir_version=proto.ir_version,
        functions=proto.functions,
    )


def reads_of(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    """All names that ``nodes`` read, those of their nested graphs included."""
    names: set[str] = set()
    for node in nodes:
        names.update(node.input)
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                names |= reads_of(graph.node) | {value.name for value in graph.output}
    return names


def _segments(graph: onnx.GraphProto, kept: Collection[str]) -> Iterator[Segment]:
    """The segments of ``graph``, which also compute what is ``kept``."""
    reads = [reads_of([node]) for node in graph.node]
    light = _light(graph, reads)
    stored = {tensor.name for tensor in graph.initializer} | light.keys()
    last = {n: place for place, names in enumerate(reads) for n in names if n not in stored}
    last |= dict.fromkeys(kept, len(reads))
    # Nested graphs read names of their own too.
    fed = {value.name for value in graph.input} - stored
    computed = {name for node in graph.node for name in node.output} - stored - {""}
    start = 0
    for stop in (*_cuts(graph, reads, last), len(reads)):
        wanted, borrowed = set().union(*reads[start:stop]), set[int]()
        for place in reversed(range(start)):
            if not wanted.isdisjoint(n for n in graph.node[place].output if n in light):
                borrowed.add(place)
                wanted |= reads[place]
        made = [name for node in graph.node[start:stop] for name in node.output if name]
        outside = (fed | computed) & wanted - {*made}
        outputs = [name for name in made if last.get(name, -1) >= stop]
        yield Segment(start, stop, tuple(sorted(borrowed)), tuple(sorted(outside)), tuple(outputs))
        start = stop


def _light(graph: onnx.GraphProto, reads: Sequence[set[str]]) -> dict[str, int]:
    """The values that rule 3 is about, with the place of the node that computes each."""
    given = {tensor.name for tensor in graph.initializer if len(tensor.dims) < 2}
    matrices = {tensor.name for tensor in graph.initializer} - given
    given |= {value.name for value in graph.input} - matrices
    light: dict[str, int] = {}
    nested = {name for names in reads for name in names} - {
        name for node in graph.node for name in node.input
    }
    for place, (node, names) in enumerate(zip(graph.node, reads, strict=True)):
        if names.isdisjoint(nested) and names - {""} <= given | light.keys():
            light |= {name: place for name in node.output if name}
    return light


def _cuts(
    graph: onnx.GraphProto, reads: Sequence[Collection[str]], last: Mapping[str, int]
) -> list[int]:
    """The places in front of which the graph is cut (rules 1 and 2).

    Args:
        graph: what is cut.
        reads: what each node reads.
        last: the place of the last node that reads a value; the end where it is kept.
    """
    sizes = {tensor.name: _bytes(tensor) for tensor in graph.initializer}
    first = {name: place for place, names in reversed([*enumerate(reads)]) for name in names}
    bytes_of, alive = np.zeros((2, len(reads) + 1), np.int64)
    for name, size in sizes.items():
        if name in first:
            bytes_of[first[name] + 1 :] += size  # in front of each place
    for place, node in enumerate(graph.node):
        for name in node.output:
            alive[place + 1 : last.get(name, -1) + 1] += 1
    cuts, start = [], 0
    while bytes_of[-1] - bytes_of[start] > SEGMENT_BYTES:
        taken = bytes_of - bytes_of[start]
        enough = np.flatnonzero(taken >= SEGMENT_BYTES / 2)
        fitting = enough[taken[enough] <= SEGMENT_BYTES]
        if len(fitting):
            start = int(fitting[::-1][np.argmin(alive[fitting[::-1]])])
        else:
            start = int(enough[0])
        if start == len(reads):
            break
        cuts.append(start)
    return cuts


def _bytes(tensor: onnx.TensorProto) -> int:
    size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(np.prod(tensor.dims, dtype=np.int64)) * size
