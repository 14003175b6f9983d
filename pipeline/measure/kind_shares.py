"""Where the bytes of a model's weights and its time go, by kind of operator.

A weight belongs to what reads it, through operators that only move numbers (Transpose, Cast,
Concat). Time is that of the kernels that ONNX Runtime really runs, after its own fusions, of the
canonical graph, whose nodes have names of their own. A kernel is of the kind of its operator; of
these two, the node that it was made from tells (:func:`pipeline.measure.kernel_times.origin`):

    site                              linear
    both operands are computed        attention
    any other product                 product
    a Gather whose table is a weight  embedding
    any other Gather                  other
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

import onnx_ir as ir

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.sites.find import SiteTable
from compress_onnx.graph_passes.sites.weights import COMPUTED, resolve
from compress_onnx.pipeline.files.original import Original
from compress_onnx.pipeline.measure.kernel_times import KernelTime, origin, profile
from compress_onnx.pipeline.measure.operator_kinds import KINDS, Kind, kind_of
from compress_onnx.pipeline.runtime.protobuf import OUTSIDE, serialized
from compress_onnx.pipeline.runtime.session import SessionSpec

_PROFILED_RUNS = 20
_PROFILED_S = 1.0
_PLAIN_PRODUCTS = frozenset({"MatMul", "Gemm", "FusedMatMul", "Einsum"})
_MOVE_NAMES = """
    Cast CastLike Concat Expand Flatten Identity Reshape Slice Split Squeeze Tile Transpose
    Unsqueeze
"""
_MOVES = frozenset(_MOVE_NAMES.split())


def bytes_by_kind(original: Original) -> dict[Kind, int]:
    """Bytes of all weights of ``original``; reads none of them."""
    kinds = _Kinds(original.table)
    found: defaultdict[Kind, int] = defaultdict(int)
    for graph in original.model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                found[_kind_of_weight(value, kinds)] += value.const_value.nbytes
    return dict(found)


class TimeShares(NamedTuple):
    """Shares of the kernel time by kind, and how many sites have no kernel of their own."""

    by_kind: dict[Kind, float]
    lost_sites: int


def times_by_kind(original: Original, feeds: Mapping[str, Array], spec: SessionSpec) -> TimeShares:
    """Where the kernel time of ``original`` on ``feeds`` goes.

    Raises:
        ProviderError, ModelFileError: the model cannot be run.
    """
    kernels = profile(
        serialized(ir.to_proto(original.model), instead=OUTSIDE),
        feeds,
        spec,
        _PROFILED_RUNS,
        data_folder=original.data_folder,
        limit_s=_PROFILED_S,
    )
    nodes = {n.name or "": n for n in ir.traversal.RecursiveGraphIterator(original.model.graph)}
    return shares_of(kernels, nodes, original.table)


def shares_of(
    kernels: Sequence[KernelTime], nodes: Mapping[str, ir.Node], table: SiteTable
) -> TimeShares:
    """Assign ``kernels`` to kinds; ``nodes`` are those of the graph by their unique names.

    A kernel takes its median time each time that it runs: one that another process interrupts
    would outweigh all others.
    """
    kinds = _Kinds(table)
    taken: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for kernel in kernels:
        taken[kernel.name, kernel.op_type].append(kernel.time_us)
    times: defaultdict[Kind, float] = defaultdict(float)
    seen: set[ir.Node] = set()
    for (name, op_type), times_us in taken.items():
        node = nodes.get(origin(name, nodes) or "")
        times[kinds.of_kernel(op_type, node)] += median(times_us) * len(times_us)
        if node is not None and kind_of(op_type) == "product":
            seen.add(node)
    total = sum(times.values()) or 1
    lost = sum(site.node not in seen for site in table.sites)
    return TimeShares({kind: time / total for kind, time in times.items()}, lost)


class _Kinds:
    """The kinds of nodes in a graph with the sites of ``table``."""

    def __init__(self, table: SiteTable) -> None:
        self._sites = {site.node for site in table.sites}

    def __call__(self, node: ir.Node) -> Kind:
        kind = kind_of(node.op_type)
        if kind == "product":
            return self._product(node)
        if node.op_type == "Gather":
            return "embedding" if _is_table(node.inputs[0]) else "other"
        return kind

    def of_kernel(self, op_type: str, node: ir.Node | None) -> Kind:
        """The kind of a kernel that was made from ``node``; None where nobody knows."""
        kind = kind_of(op_type)
        if node is not None and kind == kind_of(node.op_type):
            return self(node)
        return "other" if op_type == "Gather" else kind

    def _product(self, node: ir.Node) -> Kind:
        if node in self._sites:
            return "linear"
        operands = [value for value in node.inputs if value is not None][:2]
        computed = all(resolve(operand) == COMPUTED for operand in operands)
        return "attention" if computed and node.op_type in _PLAIN_PRODUCTS else "product"


def _is_table(value: ir.Value | None) -> bool:
    """Whether ``value`` is a weight with rows, not the shape of something."""
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type not in _MOVES or not producer.inputs:
            return False
        value = producer.inputs[0]
    weight = None if value is None else value.const_value
    return weight is not None and len(weight.shape) > 1


def _kind_of_weight(weight: ir.Value, kinds: _Kinds) -> Kind:
    """The first kind, in the order of :data:`KINDS`, among those of the readers of ``weight``."""
    found: set[Kind] = set()
    seen, values = {weight}, [weight]
    while values:
        for node, _ in values.pop().uses():
            if node.op_type not in _MOVES:
                found.add(kinds(node))
                continue
            fresh = [output for output in node.outputs if output not in seen]
            seen.update(fresh)
            values += fresh
    return min(found, key=KINDS.index, default="other")
