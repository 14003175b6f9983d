"""What a plan says of parameters and bytes is what the file then has."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from graphs import canonical, compress, model, statistics, weights
from onnx import TensorProto

from compress_onnx.graph_passes.factorization.storage import Storage
from compress_onnx.graph_passes.planning.plan import CompressionPlan, MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec

STORES: tuple[Storage, ...] = ("same", "float16", "int8", "int4")
INT8 = CompressionSpec(method=MethodSpec(name="svd"), rank=4, store="int8")
_BITS = {
    TensorProto.FLOAT: 32,
    TensorProto.FLOAT16: 16,
    TensorProto.INT8: 8,
    TensorProto.INT4: 4,
}


def graph(dtype: type, opset: int = 21) -> onnx.ModelProto:
    """Two layers, one of which is at two places, with biases."""
    kind = "float16" if dtype is np.float16 else "float"
    return model(
        f"""g ({kind}[N,24] x) => ({kind}[N,16] y) {{
            a = MatMul(x, v)
            b = Add(a, c)
            d = Relu(b)
            e = MatMul(d, v)
            y = MatMul(e, w)
        }}""",
        weights(v=(24, 24), w=(24, 16), c=(24,), dtype=dtype),
        opset,
    )


def numbers_and_bytes(proto: onnx.ModelProto) -> tuple[int, int]:
    sizes = [(math.prod(t.dims), _BITS[t.data_type]) for t in proto.graph.initializer]
    return sum(n for n, _ in sizes), sum(math.ceil(n * bits / 8) for n, bits in sizes)


def added(dtype: type, request: CompressionSpec) -> tuple[tuple[int, int], CompressionPlan]:
    """What the file really has more, and the plan."""
    before = graph(dtype)
    feeds = {"x": np.random.default_rng(0).standard_normal((40, 24)).astype(dtype)}
    stats = statistics(before, feeds) if request.method.name == "asvd" else None
    after, plan = compress(before, request, stats)
    (n, size), (m, then) = numbers_and_bytes(before), numbers_and_bytes(after)
    return (m - n, then - size), plan


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("method", ["svd", "asvd"])
def test_the_file_changes_by_what_the_plan_says(dtype, store, method) -> None:
    found, plan = added(dtype, CompressionSpec(method=MethodSpec(name=method), rank=4, store=store))
    assert len(plan.factored) == 3
    assert (plan.file_parameters_added, plan.file_bytes_added) == found
    assert found[1] < 0


def test_a_file_that_grows_says_so() -> None:
    larger = CompressionSpec(method=MethodSpec(name="svd"), rank=24, allow_larger=True)
    found, plan = added(np.float32, larger)
    assert (plan.file_parameters_added, plan.file_bytes_added) == found
    assert plan.file_parameters_added > 0
    assert plan.file_bytes_added == 4 * plan.file_parameters_added


def test_bytes_and_parameters_of_the_selected_weights() -> None:
    _, plan = added(
        np.float32, CompressionSpec(method=MethodSpec(name="svd"), rank=4, store="int8")
    )
    assert plan.parameters_before == 24 * 24 + 24 * 16
    assert plan.bytes_before == 4 * plan.parameters_before
    assert plan.parameters_after == 4 * (48 + 40)
    assert plan.bytes_after == 4 * (48 + 40) + 2 * 2 * 4 * 4  # and two scales a rank index


def test_what_stays_dense_takes_what_it_took() -> None:
    _, plan = added(
        np.float32, CompressionSpec(method=MethodSpec(name="svd"), rank=4, store="int8")
    )
    dense = [site.model_copy(update={"decision": "dense", "rank": None}) for site in plan.sites]
    undone = plan.model_copy(update={"sites": tuple(dense)})
    assert canonical(graph(np.float32)).graph.initializers["v"].const_value.nbytes == 4 * 24 * 24
    assert undone.sites[0].bytes_after == undone.sites[0].bytes_before == 4 * 24 * 24
