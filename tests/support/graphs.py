"""Small graphs as text with random weights, compressed and compared with what they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from compress_onnx.graph_passes.factorization import ActivationStats, MomentAccumulator
from compress_onnx.graph_passes.planning.plan import CompressionPlan, MethodSpec
from compress_onnx.graph_passes.planning.planner import make_plan
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.rewriting.canonicalize import CanonicalizePass
from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass
from compress_onnx.graph_passes.rewriting.low_rank import LowRankPass
from compress_onnx.graph_passes.sites.find import SiteTable, find_sites
from compress_onnx.pipeline.evidence.stacks import part
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run

Array = np.ndarray
Feeds = Mapping[str, Array]

FULL_RANK = CompressionSpec(method=MethodSpec(name="svd"), rank=10_000, allow_larger=True)
HALF = CompressionSpec(method=MethodSpec(name="svd"), params=0.5, rank_multiple=1)


def weights(seed: int = 0, dtype: type = np.float32, **shapes: Sequence[int]) -> dict[str, Array]:
    """Random arrays by name."""
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(s)).astype(dtype) for name, s in shapes.items()}


def model(text: str, initializers: Mapping[str, Array], opset: int = 17) -> onnx.ModelProto:
    """Parse a graph (``g (float[N,8] x) => (float[N,6] y) { ... }``) and give it weights."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    proto.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in initializers.items()
    )
    onnx.checker.check_model(proto, full_check=True)
    return proto


def canonical(proto: onnx.ModelProto) -> ir.Model:
    """The model as compression sees it; a copy, because tensors are renamed in place."""
    work = ir.from_proto(deepcopy(proto))
    CanonicalizePass()(work)
    return work


def sites_of(proto: onnx.ModelProto) -> SiteTable:
    """The sites of a model."""
    return find_sites(canonical(proto))


def reasons(proto: onnx.ModelProto) -> list[str]:
    """Why products are no sites."""
    return [node.reason for node in sites_of(proto).skipped]


def compress(
    proto: onnx.ModelProto,
    request: CompressionSpec = FULL_RANK,
    stats: Mapping[str, ActivationStats] | None = None,
    plan: CompressionPlan | None = None,
) -> tuple[onnx.ModelProto, CompressionPlan]:
    """Canonicalize, plan, rewrite and clean up; the result passes the full check."""
    work = canonical(proto)
    low_rank = LowRankPass(plan or make_plan(find_sites(work), request, stats or {}), stats)
    low_rank(work)
    CleanupPass()(work)
    result = ir.to_proto(work)
    onnx.checker.check_model(result, full_check=True)
    return result, low_rank.plan


def statistics(proto: onnx.ModelProto, feeds: Feeds) -> dict[str, ActivationStats]:
    """Moments of the inputs of all sites in the main graph, by the reference evaluator."""
    work = canonical(proto)
    sites = [site for site in find_sites(work).sites if not site.nested]
    named = {site.input.name for site in sites} - {v.name for v in work.graph.outputs}
    inner = [v for node in work.graph for v in node.outputs if v.name in named]
    work.graph.outputs.extend(inner)
    outputs = [value.name for value in work.graph.outputs]
    values = ReferenceEvaluator(ir.to_proto(work)).run(None, dict(feeds))
    known = {**feeds, **dict(zip(outputs, values, strict=True))}
    stats = {}
    for site in sites:
        x = known[site.input.name]
        rows = np.swapaxes(x, -1, -2) if site.transpose_input else x
        for name, place in site.matrices.items():
            accumulator = MomentAccumulator(site.in_features)
            seen = part(rows, site.weight.leading, place)
            accumulator.update(seen.reshape(-1, site.in_features))
            found = accumulator.result()
            stats[name] = found if site.corrected_bias else found.uncentred()
    return stats


def operators(proto: onnx.ModelProto) -> list[str]:
    """Op types in graph order."""
    return [node.op_type for node in proto.graph.node]


def listing(proto: onnx.ModelProto) -> list[str]:
    """Every node as ``output = Op(inputs)``, for golden graphs."""
    return [
        f"{', '.join(node.output)} = {node.op_type}({', '.join(node.input)})"
        for node in proto.graph.node
    ]


def parameters(proto: onnx.ModelProto) -> int:
    """Floating-point numbers in initializers and Constant nodes, at any depth."""
    return _parameters(proto.graph)


def _parameters(graph: onnx.GraphProto) -> int:
    tensors = list(graph.initializer)
    total = 0
    for node in graph.node:
        for attribute in node.attribute:
            tensors += [attribute.t] if attribute.HasField("t") else []
            total += sum(map(_parameters, [attribute.g, *attribute.graphs]))
    floats = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
    return total + sum(int(np.prod(t.dims)) for t in tensors if t.data_type in floats)


def interface(proto: onnx.ModelProto) -> list[str]:
    """Inputs and outputs with types and dynamic axes."""
    defaults = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in defaults]
    return [
        f"{value.name}: {onnx.helper.printable_type(value.type)}"
        for value in (*inputs, *proto.graph.output)
    ]


def assert_parity(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    feeds: Feeds,
    tolerance: float = 1e-4,
    *,
    reference: bool = True,
) -> None:
    """Both give the same outputs, to ``tolerance`` of the output's scale.

    In ONNX Runtime with its optimizations on and off and, where ``reference``, in the reference
    evaluator of ONNX.
    """
    assert interface(before) == interface(after)
    assert parity(before, after, feeds) <= tolerance
    if reference:
        expected = run(open_session(before.SerializeToString()), feeds)
        values = ReferenceEvaluator(after).run(None, dict(feeds))
        assert difference(expected, dict(zip(expected, values, strict=True))) <= tolerance


def parity(before: onnx.ModelProto, after: onnx.ModelProto, feeds: Feeds) -> float:
    """The larger :func:`difference` of ONNX Runtime's optimizations on and off."""
    found = []
    for optimization in ("all", "off"):
        spec = SessionSpec(threads=1, optimization=optimization)
        expected, actual = (
            run(open_session(proto.SerializeToString(), spec), feeds) for proto in (before, after)
        )
        found.append(difference(expected, actual))
    return max(found)


def difference(expected: Feeds, actual: Feeds) -> float:
    """The largest difference, relative to the largest value of its output.

    Names, dtypes and shapes must agree, and integers be equal.
    """
    assert expected.keys() == actual.keys()
    worst = 0.0
    for name, value in expected.items():
        other = actual[name]
        assert (other.shape, other.dtype) == (value.shape, value.dtype), name
        if value.dtype.kind != "f":
            np.testing.assert_array_equal(value, other, err_msg=name)
        elif value.size:
            one, two = value.astype(np.float64), other.astype(np.float64)
            assert np.isfinite(one).all(), name
            worst = max(worst, float(np.abs(one - two).max() / max(np.abs(one).max(), 1e-6)))
    assert not np.isnan(worst)
    return worst


PLAIN_STACKED_LEFT_NESTED = """g (float[N,3,24,24] x) => (float[N,3,24,24] y) {
    plain = MatMul(x, plain_weight)
    stacked = MatMul(plain, stacked_weight)
    left = MatMul(left_weight, stacked)
    flag = Constant<value = bool {1}>()
    y = If (flag) <
        then_branch = yes () => (float[N,3,24,24] a) { a = MatMul(left, nested_weight) },
        else_branch = no () => (float[N,3,24,24] b) { b = Relu(left) }
    >
}"""
"""A plain weight, a stack, a weight on the left, and one inside an If."""
