"""Sites that read one value, joined to one site and taken apart again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import (
    FULL_RANK,
    assert_parity,
    canonical,
    listing,
    model,
    operators,
    parameters,
    parity,
    weights,
)
from onnx import numpy_helper

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization import ActivationStats
from compress_onnx.graph_passes.planning.plan import CompressionPlan, MethodSpec
from compress_onnx.graph_passes.planning.planner import make_plan
from compress_onnx.graph_passes.planning.request import CompressionSpec, Selection
from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass
from compress_onnx.graph_passes.rewriting.join_siblings import JoinSiblingsPass, PartSiblingsPass
from compress_onnx.graph_passes.rewriting.low_rank import LowRankPass
from compress_onnx.graph_passes.sites.families import families, joined_name
from compress_onnx.graph_passes.sites.find import find_sites

QKV = """g (float[B,T,24] x) => (float[B,T,16] y, float[B,T,16] k) {
    qm = MatMul(x, wq)
    q = Add(qm, bq)
    km = MatMul(x, wk)
    k = Add(bk, km)
    vm = MatMul(x, wv)
    v = Add(vm, bv)
    s = Mul(q, k)
    y = Add(s, v)
}"""
SHAPES = {
    "wq": (24, 16),
    "wk": (24, 16),
    "wv": (24, 16),
    "bq": (16,),
    "bk": (16,),
    "bv": (16,),
}
QUERY, KEY, VALUE = "MatMul_qm", "MatMul_km", "MatMul_vm"
ROWS = {"x": np.random.default_rng(5).standard_normal((2, 3, 24)).astype(np.float32)}
RANK_4 = CompressionSpec(method=MethodSpec(name="svd"), rank=4)


def qkv(opset: int = 17, **shapes: Sequence[int]) -> onnx.ModelProto:
    return model(QKV, weights(1, **SHAPES | shapes), opset)


def shared(
    proto: onnx.ModelProto,
    groups: Sequence[Sequence[str]],
    request: CompressionSpec = RANK_4,
    stats: dict[str, ActivationStats] | None = None,
) -> tuple[onnx.ModelProto, CompressionPlan]:
    """Join, factor, take apart and clean up; the result passes the full check."""
    work = canonical(proto)
    JoinSiblingsPass(groups)(work)
    low_rank = LowRankPass(make_plan(find_sites(work), request, stats or {}), stats)
    low_rank(work)
    assert PartSiblingsPass()(work).modified == bool(groups)
    CleanupPass()(work)
    result = ir.to_proto(work)
    onnx.checker.check_model(result, full_check=True)
    return result, low_rank.plan


def names(proto: onnx.ModelProto) -> list[list[str]]:
    return [[site.name for site in f] for f in families(find_sites(canonical(proto)).sites)]


@pytest.mark.parametrize("opset", [11, 12, 13, 17, 21])
def test_joined_the_graph_computes_the_same(opset):
    work = canonical(qkv(opset))
    JoinSiblingsPass([[QUERY, KEY, VALUE]])(work)
    joined = ir.to_proto(work)
    onnx.checker.check_model(joined, full_check=True)
    assert operators(joined) == ["MatMul", "Add", "Split", "Mul", "Add"]
    assert_parity(qkv(opset), joined, ROWS, 1e-6)
    (site,) = find_sites(work).sites
    assert (site.in_features, site.out_features) == (24, 48)
    assert site.bias is not None
    assert site.siblings == {QUERY: QUERY, KEY: KEY, VALUE: VALUE}


@pytest.mark.parametrize("groups", [[[QUERY, KEY]], [[VALUE, QUERY]], [[QUERY, KEY, VALUE]]])
@pytest.mark.parametrize("method", ["svd", "svdlora:branches", "asvd"])
def test_at_full_rank_factors_change_no_output(groups, method):
    proto = qkv()
    rows = ROWS["x"].reshape(-1, 24).astype(np.float64)
    seen = ActivationStats(
        len(rows), rows.mean(axis=0), np.abs(rows).mean(axis=0), rows.T @ rows / len(rows)
    )
    work = canonical(proto)
    JoinSiblingsPass(groups)(work)
    stats = {site.name: seen for site in find_sites(work).sites}
    name, _, layout = method.partition(":")
    spec = MethodSpec(name=name, options={"layout": layout} if layout else {})
    request = FULL_RANK.model_copy(update={"method": spec})
    after, _ = shared(proto, groups, request, stats)
    assert "Split" not in operators(after)
    assert_parity(proto, after, ROWS)


def test_parity_would_notice_swapped_parts():
    after, _ = shared(qkv(), [[QUERY, KEY, VALUE]], FULL_RANK)
    ups = [tensor for tensor in after.graph.initializer if ".up." in tensor.name]
    first, second = (numpy_helper.to_array(tensor) for tensor in ups[:2])
    ups[0].CopyFrom(numpy_helper.from_array(second, ups[0].name))
    ups[1].CopyFrom(numpy_helper.from_array(first, ups[1].name))
    assert parity(qkv(), after, ROWS) > 0.1


def test_what_is_written_has_one_down_and_no_split():
    after, plan = shared(qkv(), [[QUERY, KEY]])
    joined = f"{{{QUERY},{KEY}}}"
    assert listing(after) == [
        f"{joined}.output.lowrank.down = MatMul(x, wq.siblings.lowrank.down)",
        f"{joined}.output.0 = MatMul({joined}.output.lowrank.down, wq.siblings.lowrank.up.0)",
        f"{joined}.output.1 = MatMul({joined}.output.lowrank.down, wq.siblings.lowrank.up.1)",
        f"q = Add({joined}.output.0, bq.siblings.0)",
        f"k = Add({joined}.output.1, bq.siblings.1)",
        "vm.lowrank.down = MatMul(x, wv.lowrank.down)",
        "vm = MatMul(vm.lowrank.down, wv.lowrank.up)",
        "v = Add(vm, bv)",
        "s = Mul(q, k)",
        "y = Add(s, v)",
    ]
    assert parameters(after) == 4 * (24 + 32) + 4 * (24 + 16) + 3 * 16
    site = plan.sites[0]
    assert (site.site, site.rank, site.parameters_after) == (joined, 4, 4 * (24 + 32))
    assert site.nodes == (QUERY, KEY)
    assert "one down for 2 siblings" in site.reason
    assert plan.sites[1].nodes == (VALUE,)


def test_a_joined_site_that_stays_dense_becomes_its_weights_again():
    request = RANK_4.model_copy(update={"rank": 23})
    after, plan = shared(qkv(), [[QUERY, KEY, VALUE]], request)
    assert plan.sites[0].decision == "dense"
    assert sorted(operators(after)) == ["Add"] * 4 + ["MatMul"] * 3 + ["Mul"]
    assert parameters(after) == parameters(qkv())
    assert_parity(qkv(), after, ROWS, 1e-6)
    assert len(find_sites(canonical(after)).sites) == 3


def test_a_bias_that_others_share_is_left_as_it_was():
    text = QKV.replace("bk, km", "bq, km").replace("vm, bv", "vm, bq")
    proto = model(text, weights(1, **{k: v for k, v in SHAPES.items() if k not in {"bk", "bv"}}))
    after, _ = shared(proto, [[QUERY, KEY]], FULL_RANK)
    assert_parity(proto, after, ROWS)
    (kept,) = (tensor for tensor in after.graph.initializer if tensor.name == "bq")
    (was,) = (tensor for tensor in proto.graph.initializer if tensor.name == "bq")
    assert numpy_helper.to_array(kept).tolist() == numpy_helper.to_array(was).tolist()


def test_siblings_without_biases_and_of_different_sizes():
    text = """g (float[N,24] x) => (float[N,8] a, float[N,40] b) {
        a = MatMul(x, wa)
        b = MatMul(x, wb)
    }"""
    proto = model(text, weights(wa=(24, 8), wb=(24, 40)))
    rows = {"x": ROWS["x"][0]}
    after, plan = shared(proto, [["MatMul_a", "MatMul_b"]], FULL_RANK)
    assert plan.sites[0].rank == 24
    assert operators(after) == ["MatMul"] * 3
    assert_parity(proto, after, rows)


def test_a_sibling_that_is_read_elsewhere_too_keeps_its_name_and_readers():
    text = QKV.replace("float[B,T,16] k)", "float[B,T,16] k, float[B,T,16] r)").replace(
        "y = Add(s, v)", "r = Relu(q) y = Add(s, v)"
    )
    proto = model(text, weights(1, **SHAPES))
    assert_parity(proto, shared(proto, [[QUERY, KEY]], FULL_RANK)[0], ROWS)


OTHER_INPUT = QKV.replace("float[B,T,24] x)", "float[B,T,24] x, float[B,T,24] z)")


@pytest.mark.parametrize(
    ("text", "shapes", "family"),
    [
        (QKV, {}, [QUERY, KEY, VALUE]),
        (OTHER_INPUT.replace("MatMul(x, wv)", "MatMul(z, wv)"), {}, [QUERY, KEY]),
        (QKV.replace("MatMul(x, wv)", "MatMul(x, wq)"), {"wv": None}, None),
        (QKV.replace("v = Add(vm, bv)", "v = Relu(vm)"), {"bv": None}, [QUERY, KEY]),
        (QKV, {"bv": (1, 1, 16)}, [QUERY, KEY]),
        (QKV.replace("y = Add(s, v)", "t = Add(s, v) y = Add(t, qm)"), {}, [KEY, VALUE]),
    ],
    ids=["all", "another input", "shared weight", "no bias", "more axes", "read before the bias"],
)
def test_which_sites_are_siblings(text, shapes, family):
    found = {name: shape for name, shape in (SHAPES | shapes).items() if shape}
    assert names(model(text, weights(1, **found))) == ([family] if family else [])


def test_products_of_other_forms_are_no_siblings():
    text = """g (float[24,24] x)
    => (float[24,16] a, float[24,16] b, float[16,24] c, float[24,24] d) {
        a = Gemm(x, wa)
        b = Gemm(x, wb)
        c = MatMul(wc, x)
        flag = Constant<value = bool {1}>()
        d = If (flag) <
            then_branch = yes () => (float[24,24] e) {
                f = MatMul(x, wf) g = MatMul(x, wg) e = Add(f, g)
            },
            else_branch = no () => (float[24,24] h) { h = Identity(x) }
        >
    }"""
    shapes = {"wa": (24, 16), "wb": (24, 16), "wc": (16, 24), "wf": (24, 24), "wg": (24, 24)}
    proto = model(text, weights(**shapes))
    assert len(find_sites(canonical(proto)).sites) == 5
    assert names(proto) == []


@pytest.mark.parametrize("group", [[QUERY], [QUERY, "MatMul_s"], [QUERY, "missing"], []])
def test_what_are_no_siblings_is_refused_and_nothing_is_changed(group):
    work = canonical(qkv())
    with pytest.raises(RequestError, match="no siblings that could share a factor"):
        JoinSiblingsPass([[KEY, VALUE], group])(work)
    assert operators(ir.to_proto(work)) == operators(qkv())


def test_patterns_see_the_siblings_not_the_name_of_the_group():
    work = canonical(qkv())
    JoinSiblingsPass([[QUERY, KEY]])(work)
    table = find_sites(work)
    chosen = RANK_4.model_copy(update={"select": Selection(include=("MatMul_q*", "MatMul_k*"))})
    assert [site.decision for site in make_plan(table, chosen).sites] == ["factor", "skip"]
    left = RANK_4.model_copy(update={"select": Selection(exclude=(KEY,))})
    assert [site.decision for site in make_plan(table, left).sites] == ["skip", "factor"]


def test_nothing_to_part_is_no_change():
    work = canonical(qkv())
    assert not PartSiblingsPass()(work).modified
    assert not JoinSiblingsPass([])(work).modified


def test_the_name_of_a_group_says_who_is_in_it():
    assert joined_name(["a.b.q", "a.b.k"]) == "a.b.{q,k}"
    assert joined_name(["a.0.q", "a.1.q"]) == "a.{0.q,1.q}"
    assert joined_name(["q", "k"]) == "{q,k}"
    assert joined_name(["a", "a.b"]) == "{a,a.b}"
