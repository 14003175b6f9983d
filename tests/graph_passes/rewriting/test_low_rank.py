"""Rewriting: what comes out is what went in, at full rank, in every form of a linear layer."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from forms import FORMS
from graphs import (
    FULL_RANK,
    HALF,
    assert_parity,
    compress,
    listing,
    model,
    operators,
    parameters,
    reasons,
    sites_of,
    statistics,
    weights,
)
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec

ASVD_FULL = CompressionSpec(method=MethodSpec(name="asvd"), rank=10_000, allow_larger=True)
ASVD_HALF = CompressionSpec(method=MethodSpec(name="asvd"), params=0.5, rank_multiple=1)
BRANCHES = CompressionSpec(
    method=MethodSpec(name="svdlora", options={"stages": 3, "layout": "branches"}),
    rank=10_000,
    allow_larger=True,
)


def build(name: str, opset: int = 17, dtype: type = np.float32) -> onnx.ModelProto:
    return FORMS[name].build(opset, dtype)


@pytest.mark.parametrize("name", FORMS)
class TestEveryForm:
    def test_all_sites_are_found(self, name: str) -> None:
        table = sites_of(build(name))
        assert len(table.sites) == FORMS[name].sites
        assert not table.skipped
        for site in table.sites:
            assert site.in_features == 8 or name == "chain"
            assert site.weight.array().shape[-2:] == (site.in_features, site.out_features)

    @pytest.mark.parametrize("request_", [FULL_RANK, BRANCHES], ids=["svd", "branches"])
    def test_full_rank_reproduces_the_outputs(self, name: str, request_: CompressionSpec) -> None:
        before = build(name)
        after, plan = compress(before, request_)
        assert len(plan.factored) == FORMS[name].sites
        assert_parity(before, after, FORMS[name].feeds())
        assert parameters(after) - parameters(before) == plan.file_parameters_added

    def test_corrected_bias_lands_where_it_belongs(self, name: str) -> None:
        """At full rank the correction vanishes; at a low rank it keeps the mean of the product."""
        form = FORMS[name]
        if not form.in_graph or name == "no rows":
            pytest.skip("no statistics there")
        before, feeds = build(name), form.feeds()
        stats = statistics(before, feeds)
        full, _ = compress(before, ASVD_FULL, stats)
        assert_parity(before, full, feeds)
        half, plan = compress(before, ASVD_HALF, stats)
        assert plan.factored
        assert parameters(half) - parameters(before) == plan.file_parameters_added
        if {"Relu", "Mul", "Tanh"} & set(operators(before)):
            return  # means do not survive what is not linear
        expected, actual = (ReferenceEvaluator(proto).run(None, feeds) for proto in (before, half))
        site = sites_of(before).sites[0]
        for one, other in zip(expected, actual, strict=True):
            assert one.shape == other.shape
            token = () if one.ndim == 1 else (-1 if "left" in name else -2,)
            axes = (*range(one.ndim - 2 - len(site.weight.leading)), *token)
            if site.corrected_bias:
                np.testing.assert_allclose(other.mean(axes), one.mean(axes), atol=1e-5)
            else:
                assert operators(half).count("Add") == operators(before).count("Add")

    def test_half_saves_what_the_plan_states(self, name: str) -> None:
        before = build(name)
        after, plan = compress(before, HALF)
        assert plan.file_parameters_added < 0
        assert parameters(after) - parameters(before) == plan.file_parameters_added

    def test_second_compression_finds_nothing_to_do(self, name: str) -> None:
        table = sites_of(compress(build(name), HALF)[0])
        assert not table.sites
        assert {node.reason for node in table.skipped} == {"already a low-rank factor"}


@pytest.mark.parametrize("opset", [11, 13, 15, 17, 18, 19, 20, 21, 22, 23])
@pytest.mark.parametrize("name", ["3-D bias", "Gemm alpha beta", "Gemm transA", "experts"])
def test_opsets(name: str, opset: int) -> None:
    before = build(name, opset)
    after, _ = compress(before)
    assert after.opset_import == before.opset_import
    assert_parity(before, after, FORMS[name].feeds())


@pytest.mark.parametrize("name", ["3-D bias", "Gemm alpha beta", "weight on the left, bias"])
def test_float16_stays_float16(name: str) -> None:
    before = build(name, dtype=np.float16)
    after, plan = compress(before)
    assert plan.factored
    assert {t.data_type for t in after.graph.initializer} == {onnx.TensorProto.FLOAT16}
    assert_parity(before, after, FORMS[name].feeds(np.float16), 1e-2)


def test_bfloat16_stays_bfloat16() -> None:
    before = build("bias last")
    for value in (*before.graph.input, *before.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    for tensor in before.graph.initializer:
        exact = numpy_helper.to_array(tensor)
        tensor.CopyFrom(
            onnx.helper.make_tensor(
                tensor.name, onnx.TensorProto.BFLOAT16, exact.shape, exact.ravel()
            )
        )
    after, plan = compress(before)
    assert plan.factored
    assert {t.data_type for t in after.graph.initializer} == {onnx.TensorProto.BFLOAT16}
    original, down, up = (
        ir.from_proto(proto).graph.initializers[name].const_value.numpy().astype(np.float64)
        for proto, name in ((before, "w"), (after, "w.lowrank.down"), (after, "w.lowrank.up"))
    )
    np.testing.assert_allclose(down @ up, original, atol=0.05)


class TestGoldenGraphs:
    def test_matmul_with_bias(self) -> None:
        after, _ = compress(build("bias last"))
        assert listing(after) == [
            "m.lowrank.down = MatMul(x, w.lowrank.down)",
            "m = MatMul(m.lowrank.down, w.lowrank.up)",
            "y = Add(m, b)",
        ]

    def test_corrected_bias_is_a_new_initializer(self) -> None:
        before = build("bias last")
        after, _ = compress(before, ASVD_HALF, statistics(before, {"x": np.eye(8, dtype="f4")}))
        assert listing(after)[-1] == "y = Add(m, w.lowrank.bias)"
        assert "b" not in {tensor.name for tensor in after.graph.initializer}

    def test_correction_without_a_bias_is_an_add(self) -> None:
        before = build("MatMul")
        after, _ = compress(before, ASVD_HALF, statistics(before, {"x": np.eye(8, dtype="f4")}))
        assert listing(after) == [
            "y.lowrank.down = MatMul(x, w.lowrank.down)",
            "y.lowrank.up = MatMul(y.lowrank.down, w.lowrank.up)",
            "y = Add(y.lowrank.up, w.lowrank.bias)",
        ]

    def test_gemm_keeps_its_bias_and_factors(self) -> None:
        after, _ = compress(build("Gemm alpha beta"))
        assert listing(after) == [
            "y.lowrank.down = MatMul(x, w.lowrank.down)",
            "y = Gemm(y.lowrank.down, w.lowrank.up, b)",
        ]
        attributes = {a.name: a.f for a in after.graph.node[-1].attribute}
        assert attributes == {"alpha": 0.5, "beta": -2.0}

    def test_weight_on_the_left(self) -> None:
        after, _ = compress(build("weight on the left"), HALF)
        assert listing(after) == [
            "y.lowrank.down = MatMul(w.lowrank.down, x)",
            "y = MatMul(w.lowrank.up, y.lowrank.down)",
        ]
        assert [list(t.dims) for t in after.graph.initializer] == [[1, 8], [6, 1]]

    def test_experts_are_factored_each_on_its_own(self) -> None:
        before = build("experts, transposed")
        after, plan = compress(before, HALF)
        assert operators(after) == ["MatMul", "MatMul"]
        assert [list(t.dims) for t in after.graph.initializer] == [[3, 8, 1], [3, 1, 6]]
        assert plan.sites[0].matrices == 3
        factors = [numpy_helper.to_array(t).astype(float) for t in after.graph.initializer]
        for matrix, down, up in zip(
            numpy_helper.to_array(before.graph.initializer[0]), *factors, strict=True
        ):
            u, s, vt = np.linalg.svd(matrix.T, full_matrices=False)
            np.testing.assert_allclose(down @ up, s[0] * np.outer(u[:, 0], vt[0]), atol=1e-5)

    def test_branches_are_summed(self) -> None:
        after, _ = compress(build("MatMul"), BRANCHES)
        assert operators(after) == ["MatMul"] * 4 + ["Add"] + ["MatMul"] * 2 + ["Add"]

    def test_sites_that_share_a_weight_share_its_factors(self) -> None:
        after, plan = compress(build("shared weight"))
        assert len(plan.factored) == 2
        assert {t.name for t in after.graph.initializer} == {"w.lowrank.down", "w.lowrank.up"}

    def test_taken_names_are_avoided(self) -> None:
        before = model(
            "g (float[N,8] x) => (float[N,6] y, float[N,6] z) { y = MatMul(x, w) z = Mul(y, v) }",
            weights(w=(8, 6), v=(6,)),
        )
        before.graph.node[1].input[1] = before.graph.initializer[1].name = "w.lowrank.down"
        before.graph.node[1].output[0] = before.graph.output[1].name = "y.lowrank.down"
        after, _ = compress(before)
        assert_parity(before, after, weights(3, x=(5, 8)))
        assert "w.lowrank.down_2" in {t.name for t in after.graph.initializer}

    def test_nodes_say_where_they_come_from(self) -> None:
        after, plan = compress(build("MatMul"), HALF)
        for node in after.graph.node:
            properties = {p.key: p.value for p in node.metadata_props}
            assert properties["compress_onnx.site"] == plan.sites[0].site
            assert properties["compress_onnx.method"] == "svd"
            assert properties["compress_onnx.rank"] == str(plan.sites[0].rank)
            assert float(properties["compress_onnx.error"]) == pytest.approx(
                plan.sites[0].error.reached, rel=1e-5
            )

    def test_shapes_of_the_new_values_are_recorded(self) -> None:
        before = onnx.shape_inference.infer_shapes(build("3-D bias"))
        after, _ = compress(before, HALF)
        shapes = {
            value.name: [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
            for value in after.graph.value_info
        }
        assert shapes["m.lowrank.down"] == ["B", "N", 1]
        assert shapes["m"] == ["B", "N", 6]


class TestScopes:
    def test_equal_names_in_sibling_branches_are_two_weights(self) -> None:
        before = model(
            "g (float[N,8] x, bool flag) => (float[N,6] y) { y = If(flag) <"
            "then_branch = t () => (float[N,6] a) { a = MatMul(x, w) }, "
            "else_branch = e () => (float[N,6] a) { a = MatMul(x, w) }> }",
            weights(w=(8, 6)),
        )
        del before.graph.initializer[:]
        for seed, attribute in enumerate(before.graph.node[0].attribute):
            array = weights(seed, w=(8, 6))["w"]
            attribute.g.initializer.append(numpy_helper.from_array(array, "w"))
        onnx.checker.check_model(before, full_check=True)
        after, plan = compress(before)
        assert len({site.weight for site in plan.factored}) == 2
        assert parameters(after) - parameters(before) == plan.file_parameters_added
        for flag in (True, False):
            assert_parity(before, after, {**weights(3, x=(5, 8)), "flag": np.array(flag)})

    def test_loop_body_reads_an_outer_weight(self) -> None:
        before = model(
            "g (int64 n, float[N,8] x) => (float[N,8] y) { true = Constant<value = bool {1}>() "
            "y = Loop(n, true, x) <body = b (int64 i, bool go, float[N,8] s) "
            "=> (bool on, float[N,8] t) { on = Identity(go) m = MatMul(s, w) t = Tanh(m) }> }",
            weights(w=(8, 8)),
        )
        after, plan = compress(before)
        assert plan.factored
        assert_parity(before, after, {**weights(3, x=(5, 8)), "n": np.array(3)})

    def test_scan_body_reads_an_outer_weight(self) -> None:
        before = model(
            "g (float[8] h, float[N,8] x) => (float[8] z, float[N,8] y) "
            "{ z, y = Scan<num_scan_inputs = 1, body = b (float[8] s, float[8] e) "
            "=> (float[8] t, float[8] o) { a = MatMul(s, w) c = Add(a, e) t = Tanh(c) "
            "o = Identity(t) }>(h, x) }",
            weights(w=(8, 8)),
        )
        after, plan = compress(before)
        assert plan.factored
        assert_parity(before, after, weights(3, h=(8,), x=(4, 8)))

    def test_weight_shared_by_the_graph_and_a_branch(self) -> None:
        before = model(
            "g (float[N,8] x, bool flag) => (float[N,8] y) { h = MatMul(x, w) y = If(flag) <"
            "then_branch = t () => (float[N,8] a) { a = MatMul(h, w) }, "
            "else_branch = e () => (float[N,8] b) { b = Relu(h) }> }",
            weights(w=(8, 8)),
        )
        after, plan = compress(before, HALF)
        assert [site.decision for site in plan.sites] == ["factor", "factor"]
        assert parameters(after) - parameters(before) == plan.file_parameters_added == 4 * 8 - 64

    def test_asvd_says_that_it_cannot_see_into_a_branch(self) -> None:
        before = build("branches of an If, weights outside")
        also = model(
            "g (float[N,8] x, bool flag) => (float[N,6] y) { h = MatMul(x, v) y = If(flag) <"
            "then_branch = t () => (float[N,6] a) { a = MatMul(h, w) }, "
            "else_branch = e () => (float[N,6] b) { b = MatMul(h, u) }> }",
            weights(v=(8, 8), w=(8, 6), u=(8, 6)),
        )
        stats = statistics(also, {**weights(3, x=(5, 8)), "flag": np.array(True)})
        _, plan = compress(also, ASVD_HALF, stats)
        assert [site.decision for site in plan.sites] == ["factor", "dense", "dense"]
        assert "inside an If, Loop or Scan" in plan.sites[1].reason
        assert len(compress(before, HALF)[1].factored) == 2


FUNCTIONS = """
<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
g (float[N,8] x) => (float[N,6] y) {{ {calls} }}
<domain: "local", opset_import: ["" : {opset}]> linear (x, w, b) => (y) {{
  m = MatMul(x, w)
  y = Add(m, b)
}}
<domain: "local", opset_import: ["" : {opset}, "local" : 1]> block (w, x, v) => (b) {{
  y = local.linear(x, w, v)
  b = Relu(y)
}}
"""


class TestFunctions:
    @staticmethod
    def build(calls: str, opset: int = 17, **shapes: tuple[int, ...]) -> onnx.ModelProto:
        proto = onnx.parser.parse_model(FUNCTIONS.format(calls=calls, opset=opset))
        for name, array in weights(4, **shapes).items():
            proto.graph.initializer.append(numpy_helper.from_array(array, name))
        onnx.checker.check_model(proto)
        return proto

    def test_formal_parameters_are_bound_by_scope(self) -> None:
        """Inside ``block``, w is the graph's v, x its w: names mean nothing."""
        before = self.build(
            "h = local.block(v, x, b) y = local.linear(h, w, c)", v=(8, 8), w=(8, 6), b=(8,), c=(6,)
        )
        after, plan = compress(before)
        assert {site.weight for site in plan.factored} == {"v", "w"}
        assert not after.functions
        assert_parity(before, after, weights(3, x=(5, 8)))

    def test_function_called_twice_with_one_weight_is_factored_once(self) -> None:
        before = self.build(
            "h = local.block(v, x, b) k = local.block(v, h, b) y = local.linear(k, w, c)",
            v=(8, 8), w=(8, 6), b=(8,), c=(6,),
        )  # fmt: skip
        after, plan = compress(before)
        assert len(plan.factored) == 3
        assert parameters(after) - parameters(before) == plan.file_parameters_added
        assert_parity(before, after, weights(3, x=(5, 8)))

    def test_function_of_another_opset_is_left_with_the_reason(self) -> None:
        before = self.build("y = local.linear(x, w, c)", 16, w=(8, 6), c=(6,))
        (reason,) = reasons(before)
        assert reason == "inside the model-local function 'linear', which cannot be inlined"

    def test_function_without_products_stays(self) -> None:
        before = onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17, "local" : 1]> '
            "g (float[N,8] x) => (float[N,6] y) { h = local.act(x) y = MatMul(h, w) } "
            '<domain: "local", opset_import: ["" : 17]> act (x) => (y) { y = Relu(x) }'
        )
        before.graph.initializer.append(numpy_helper.from_array(weights(w=(8, 6))["w"], "w"))
        after, _ = compress(before)
        assert [function.name for function in after.functions] == ["act"]
        assert_parity(before, after, weights(3, x=(5, 8)))

    def test_exploding_calls_are_not_inlined(self) -> None:
        levels = "".join(
            f'<domain: "local", opset_import: ["" : 17, "local" : 1]> f{level} (x, w) => (y) '
            f"{{ h = local.f{level + 1}(x, w) y = local.f{level + 1}(h, w) }} "
            for level in range(60)
        )
        bomb = onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17, "local" : 1]> '
            "g (float[N,8] x) => (float[N,8] y) { y = local.f0(x, w) } "
            + levels
            + '<domain: "local", opset_import: ["" : 17]> f60 (x, w) => (y) { y = MatMul(x, w) }'
        )
        bomb.graph.initializer.append(numpy_helper.from_array(weights(w=(8, 8))["w"], "w"))
        assert len(reasons(bomb)) == 1


def test_omitted_outputs_stay_omitted() -> None:
    before = model(
        "g (float[T,N,8] x) => (float[D,N,4] y) "
        "{ ,h = LSTM<hidden_size=4>(x, w, r) y = MatMul(h, v) }",
        weights(w=(1, 16, 8), r=(1, 16, 4), v=(4, 4)),
    )
    after, plan = compress(before)
    assert len(plan.factored) == 1
    assert list(after.graph.node[0].output) == ["", "h"]
    assert_parity(before, after, weights(3, x=(3, 5, 8)))


def test_constant_nodes_hold_weights_too() -> None:
    before = build("bias last")
    constants = [
        onnx.helper.make_node("Constant", [], [t.name], value=t) for t in before.graph.initializer
    ]
    nodes = [*constants, *before.graph.node]
    del before.graph.node[:], before.graph.initializer[:]
    before.graph.node.extend(nodes)
    after, plan = compress(before, HALF)
    assert len(plan.factored) == 1
    assert parameters(after) - parameters(before) == plan.file_parameters_added
