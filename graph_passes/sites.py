"""Find every linear site ``y = x·W (+ b)`` of a graph, and say why the other MatMuls are none.

Rules:

1. MatMul with a two-dimensional weight on the right is a site, for x of any number of dimensions.
2. Gemm is a site with any transA, transB, alpha and beta; C may be missing, a bias or computed.
3. An Add right behind a MatMul is its bias if its other operand, on either side, is an initializer
   of N elements along the last axis (or one element), and the MatMul has no other reader. Any
   other Add (a residual, a position embedding) is not touched.
4. A weight counts only if every reader of its initializer is a site: otherwise the dense weight
   would have to stay in the file and factoring would add to it.
5. Everything else that multiplies matrices is a :class:`SkippedNode` with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from graph_passes.naming import UniqueNames, group_of, module_path
from graph_passes.plan import SkippedNode
from graph_passes.weights import STANDARD_DOMAINS, Weight, readers, resolve

SITE_PROPERTY = "compress_onnx.site"
"""Metadata that marks a node as a low-rank factor, so that it is not factored again."""

MATRIX_PRODUCTS = frozenset(
    {
        ("", "MatMul"),
        ("", "Gemm"),
        ("", "MatMulInteger"),
        ("", "QLinearMatMul"),
        ("com.microsoft", "FusedMatMul"),
        ("com.microsoft", "FusedGemm"),
        ("com.microsoft", "MatMulNBits"),
        ("com.microsoft", "MatMulIntegerToFloat"),
        ("com.microsoft", "DynamicQuantizeMatMul"),
        ("com.microsoft", "GemmFastGelu"),
    }
)


@dataclass(frozen=True)
class Bias:
    """The initializer ``value`` that ``node`` (an Add, or the Gemm itself) adds at ``index``."""

    value: ir.Value
    node: ir.Node
    index: int


@dataclass(frozen=True)
class LinearSite:
    """A linear layer in the graph: ``y = alpha·x·W + beta·b``, W of shape [K, N].

    Attributes:
        name: module path, unique in the model.
        group: ``attention``, ``mlp`` or ``other``.
        node: the MatMul or Gemm.
        weight: W as the node sees it.
        bias: where a bias correction can go; None where there is none to edit.
        transpose_input: the node reads xᵀ (Gemm with transA).
        alpha, beta: Gemm's factors; 1 for MatMul.
        nested: the node is inside the body of an If, Loop or Scan.
    """

    name: str
    group: str
    node: ir.Node
    weight: Weight
    bias: Bias | None
    transpose_input: bool = False
    alpha: float = 1.0
    beta: float = 1.0
    nested: bool = False

    @property
    def input(self) -> ir.Value:
        """The value x."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def in_features(self) -> int:
        """K."""
        return self.weight.shape[0]

    @property
    def out_features(self) -> int:
        """N."""
        return self.weight.shape[1]


@dataclass(frozen=True)
class SiteTable:
    """All linear sites of a model in graph order, and all matrix products that are none."""

    sites: tuple[LinearSite, ...]
    skipped: tuple[SkippedNode, ...]


def find_sites(model: ir.Model) -> SiteTable:
    """Find all linear sites of ``model``; reads no weights and changes nothing."""
    found: list[LinearSite] = []
    skipped: list[SkippedNode] = []
    names = UniqueNames()
    for node, nested in _matrix_products(model):
        site = match(node)
        if isinstance(site, str):
            skipped.append(_skip(node, site))
        else:
            found.append(replace(site, name=names(site.name), nested=nested))
    for function in model.functions.values():
        skipped.extend(
            _skip(node, f"inside the model-local function {function.name}: not supported")
            for node in ir.traversal.RecursiveGraphIterator(function)
            if _is_product(node)
        )
    nodes = {site.node: site.weight.transposed for site in found}
    sites: list[LinearSite] = []
    for site in found:
        reason = _other_reader(site, nodes)
        if reason is None:
            sites.append(site)
        else:
            skipped.append(_skip(site.node, reason))
    return SiteTable(tuple(sites), tuple(skipped))


def match(node: ir.Node) -> LinearSite | str:
    """Read ``node`` as a linear site, or say why it is none."""
    if SITE_PROPERTY in node.metadata_props:
        return "already a low-rank factor"
    if node.domain not in STANDARD_DOMAINS:
        return f"{node.domain}.{node.op_type}: a fused or quantized operator is left whole"
    if node.op_type == "MatMul":
        return _match_matmul(node)
    if node.op_type == "Gemm":
        return _match_gemm(node)
    return f"{node.op_type}: quantized weights are not factored"


def _match_matmul(node: ir.Node) -> LinearSite | str:
    left, right = node.inputs
    assert left is not None
    assert right is not None
    weight = resolve(right)
    if isinstance(weight, str):
        on_left = not isinstance(resolve(left), str)
        return "weight on the left of the MatMul: not supported" if on_left else weight
    bias = _bias_behind(node, weight.shape[1])
    name = module_path(node, (weight.initializer, bias.value if bias else None))
    return LinearSite(name, group_of(name), node, weight, bias)


def _match_gemm(node: ir.Node) -> LinearSite | str:
    right = node.inputs[1]
    assert right is not None
    weight = resolve(right, transposed=bool(node.attributes.get_int("transB", 0)))
    if isinstance(weight, str):
        return weight
    addend = node.inputs[2] if len(node.inputs) > 2 else None
    bias = (
        Bias(addend, node, 2) if addend is not None and _is_bias(addend, weight.shape[1]) else None
    )
    name = module_path(node, (weight.initializer, addend))
    return LinearSite(
        name,
        group_of(name),
        node,
        weight,
        bias,
        transpose_input=bool(node.attributes.get_int("transA", 0)),
        alpha=node.attributes.get_float("alpha", 1.0),
        beta=node.attributes.get_float("beta", 1.0),
    )


def _bias_behind(node: ir.Node, features: int) -> Bias | None:
    """Rule 3: the Add behind a MatMul, if it adds a bias of ``features`` elements."""
    output = node.outputs[0]
    uses = output.uses()
    if len(uses) != 1 or output.is_graph_output():
        return None
    (add, index), *_ = uses
    if add.op_type != "Add" or add.domain not in STANDARD_DOMAINS or add.graph is not node.graph:
        return None
    other = add.inputs[1 - index]
    if other is None or not _is_bias(other, features):
        return None
    return Bias(other, add, 1 - index)


def _is_bias(value: ir.Value, features: int) -> bool:
    if not value.is_initializer() or value.is_graph_input() or value.const_value is None:
        return False
    shape = tuple(int(size) for size in value.const_value.shape.numpy())
    return (
        len(shape) <= 3
        and all(size == 1 for size in shape[:-1])
        and shape[-1:] in {(), (1,), (features,)}
    )


def _other_reader(site: LinearSite, sites: Mapping[ir.Node, bool]) -> str | None:
    for reader in readers(site.weight.initializer):
        if reader is None:
            return f"weight {site.weight.initializer.name!r} is a graph output"
        if reader not in sites:
            return (
                f"weight {site.weight.initializer.name!r} is also read by {reader.op_type} "
                f"{reader.name!r}: factoring it would remove nothing"
            )
        if sites[reader] != site.weight.transposed:
            return f"weight {site.weight.initializer.name!r} is read both straight and transposed"
    return None


def _matrix_products(model: ir.Model) -> Iterator[tuple[ir.Node, bool]]:
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if _is_product(node):
            yield node, node.graph is not model.graph


def _is_product(node: ir.Node) -> bool:
    domain = "" if node.domain == "ai.onnx" else node.domain
    return (domain, node.op_type) in MATRIX_PRODUCTS


def _skip(node: ir.Node, reason: str) -> SkippedNode:
    return SkippedNode(node=node.name or "", op_type=node.op_type, reason=reason)
