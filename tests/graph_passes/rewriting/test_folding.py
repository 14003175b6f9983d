"""The context of attention is divided in the projection that makes its values, without a node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import assert_parity, canonical, model, operators, parity, weights
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass
from compress_onnx.graph_passes.rewriting.smoothing import SmoothingPass, folds, shared_inputs
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.pipeline.runtime.session import open_session

F, N, HEADS, CHANNELS = 6, 5, 4, 3
ROLES = ("wv", "wo")
TYPES = f"(float[B,T,{F}] x) => (float[B,T,{N}] y)"

SCORES = """q = MatMul(x, wq) qr = Reshape(q, heads) qt = Transpose<perm=[0,2,1,3]>(qr)
    k = MatMul(x, wk) kr = Reshape(k, heads) kt = Transpose<perm=[0,2,3,1]>(kr)
    s = MatMul(qt, kt) p = Softmax<axis=-1>(s) """
VALUES = "m = MatMul(x, wv) v = Add(m, bv) "
SPREAD = "vr = Reshape(v, heads) vt = Transpose<perm=[0,2,1,3]>(vr) "
CONTEXT = "c = MatMul(p, vt) ct = Transpose<perm=[0,2,1,3]>(c) f = Reshape(ct, flat) "
OUT = "y = MatMul(f, wo) "
QUERIES = "q = MatMul(x, wq) k = MatMul(x, wk) "
IN_FOUR = f"""{QUERIES} {VALUES} {SPREAD} qr = Reshape(q, heads) kr = Reshape(k, heads)
    qt = Transpose<perm=[0,2,1,3]>(qr) kt = Transpose<perm=[0,2,1,3]>(kr) """
BACK = "ct = Transpose<perm=[0,2,1,3]>(c) f = Reshape(ct, flat) "
PRESENT = """a = MatMul(f, wo) rk = ReduceMean<keepdims=0>(pk) rv = ReduceMean<keepdims=0>(pv)
    r = Add(rk, rv) y = Add(a, r) """

FOLDED: Mapping[str, str] = {
    "as exported": f"{SCORES} {VALUES} {SPREAD} {CONTEXT} {OUT}",
    "bias on the left": f"{SCORES} m = MatMul(x, wv) v = Add(bv, m) {SPREAD} {CONTEXT} {OUT}",
    "no bias": f"{SCORES} v = MatMul(x, wv) {SPREAD} {CONTEXT} {OUT}",
    "transposed weight": f"""{SCORES} w = Transpose<perm=[1,0]>(wvt) v = MatMul(x, w)
        {SPREAD} {CONTEXT} {OUT}""",
    "gemm": f"""{SCORES} r = Reshape(x, rows) g = Gemm<alpha=0.5, beta=2.0>(r, wv, bv)
        size = Shape(x) end = Concat<axis=0>(leading, whole) all = Slice(size, zero, two)
        shape = Concat<axis=0>(all, whole) v = Reshape(g, shape) {SPREAD} {CONTEXT} {OUT}""",
    "gemm, transposed": f"""{SCORES} r = Reshape(x, rows) v = Gemm<transB=1>(r, wvt)
        size = Shape(x) all = Slice(size, zero, two) shape = Concat<axis=0>(all, ends)
        vr = Reshape(v, shape) vt = Transpose<perm=[0,2,1,3]>(vr) {CONTEXT} {OUT}""",
    "computed shapes": f"""{SCORES} {VALUES} size = Shape(v) length = Gather(size, one)
        t = Unsqueeze(length, at) shape = Concat<axis=0>(minus, t, ends)
        vr = Reshape(v, shape) vt = Transpose<perm=[0,2,1,3]>(vr)
        c = MatMul(p, vt) ct = Transpose<perm=[0,2,1,3]>(c) other = Shape(ct)
        both = Slice(other, zero, two) end = Concat<axis=0>(both, minus) f = Reshape(ct, end)
        {OUT}""",
    "channels before heads": f"""{SCORES} {VALUES} {SPREAD} c = MatMul(p, vt)
        ct = Transpose<perm=[0,2,3,1]>(c) f = Reshape(ct, flat) {OUT}""",
    "channels before heads in V": f"""{SCORES} {VALUES} vr = Reshape(v, turned)
        vt = Transpose<perm=[0,3,1,2]>(vr) {CONTEXT} {OUT}""",
    "identities": f"""{SCORES} {VALUES} i = Identity(v) vr = Reshape(i, heads)
        vt = Transpose<perm=[0,2,1,3]>(vr) {CONTEXT} j = Identity(f) y = MatMul(j, wo)""",
    "one head": "q = MatMul(x, wq) k = MatMul(x, wk) kt = Transpose<perm=[0,2,1]>(k)"
    f" s = MatMul(q, kt) p = Softmax<axis=-1>(s) {VALUES} f = MatMul(p, v) {OUT}",
    "packed": """all = MatMul(x, wqkv) u = Add(all, bqkv) q, k, v = Split<axis=-1>(u, thirds)
        qr = Reshape(q, heads) qt = Transpose<perm=[0,2,1,3]>(qr)
        kr = Reshape(k, heads) kt = Transpose<perm=[0,2,3,1]>(kr)
        s = MatMul(qt, kt) p = Softmax<axis=-1>(s)"""
    f"{SPREAD} {CONTEXT} {OUT}",
    "packed, halves by their count": f"""{SCORES} all = MatMul(x, wkv) k2, v = Split<axis=-1>(all)
        {SPREAD} {CONTEXT} z = MatMul(f, wo) o = ReduceSum<keepdims=1>(k2, last) y = Add(z, o)""",
    "two readers": f"{SCORES} {VALUES} {SPREAD} {CONTEXT} a = MatMul(f, wo) b = MatMul(f, wp)"
    " y = Add(a, b)",
    "attention of three dimensions": f"""{QUERIES} {VALUES}
        f = Attention<q_num_heads={HEADS}, kv_num_heads={HEADS}>(q, k, v) {OUT}""",
    "attention of four dimensions": f"{IN_FOUR} c = Attention(qt, kt, vt) {BACK} {OUT}",
    "causal attention": f"{IN_FOUR} c = Attention<is_causal=1>(qt, kt, vt) {BACK} {OUT}",
}

MULTIPLIED: Mapping[str, str] = {
    "V read twice": f"{SCORES} {VALUES} {SPREAD} {CONTEXT} a = MatMul(f, wo) b = MatMul(v, wp)"
    " y = Add(a, b)",
    "V multiplies itself": f"{VALUES} {SPREAD} vk = Transpose<perm=[0,1,3,2]>(vt)"
    f" s = MatMul(vt, vk) p = Softmax<axis=-1>(s) {CONTEXT} {OUT}",
    "context read twice": f"{SCORES} {VALUES} {SPREAD} {CONTEXT} a = MatMul(f, wo)"
    " b = ReduceMean<axes=[-1]>(f) y = Add(a, b)",
    "one V for all heads": f"""{SCORES} v = MatMul(x, wv1) vr = Reshape(v, single)
        vt = Transpose<perm=[0,2,1,3]>(vr) {CONTEXT} {OUT}""",
    "heads that share V": f"""{SCORES} v = MatMul(x, wv2) vr = Reshape(v, double)
        v2 = Transpose<perm=[0,2,1,3]>(vr) vu = Unsqueeze(v2, axis2) ve = Expand(vu, twice)
        size = Shape(qt) vt = Reshape(ve, size) {CONTEXT} {OUT}""",
    "a weight of two layers": f"""q = MatMul(x, wq) qr = Reshape(q, heads)
        qt = Transpose<perm=[0,2,1,3]>(qr) k = MatMul(x, wv) kr = Reshape(k, heads)
        kt = Transpose<perm=[0,2,3,1]>(kr) s = MatMul(qt, kt) p = Softmax<axis=-1>(s)
        {VALUES} {SPREAD} {CONTEXT} {OUT}""",
    "V on the left": f"""{SCORES} {VALUES} vr = Reshape(v, heads) pt = Transpose<perm=[0,1,3,2]>(p)
        vt = Transpose<perm=[0,2,3,1]>(vr) c = MatMul(vt, pt) ct = Transpose<perm=[0,3,1,2]>(c)
        f = Reshape(ct, flat) {OUT}""",
    "no linear layer": f"{SCORES} {VALUES} r = Relu(v) vr = Reshape(r, heads)"
    f" vt = Transpose<perm=[0,2,1,3]>(vr) {CONTEXT} {OUT}",
    "a bias of every place": f"""{SCORES} m = MatMul(x, wv) v = Add(m, places)
        {SPREAD} {CONTEXT} {OUT}""",
    "attention whose heads share V": f"""q = MatMul(x, wq) k = MatMul(x, wv2) v = MatMul(x, wk2)
        f = Attention<q_num_heads={HEADS}, kv_num_heads=2>(q, k, v) {OUT}""",
    "attention whose heads share V, in four dimensions": f"""q = MatMul(x, wq) k = MatMul(x, wk2)
        v = MatMul(x, wv2) qr = Reshape(q, heads) kr = Reshape(k, double) vr = Reshape(v, double)
        qt = Transpose<perm=[0,2,1,3]>(qr) kt = Transpose<perm=[0,2,1,3]>(kr)
        vt = Transpose<perm=[0,2,1,3]>(vr) c = Attention(qt, kt, vt) {BACK} {OUT}""",
    "attention with a past": f"""{IN_FOUR} zeros = Mul(kt, none) older = Mul(kt, kt)
        c, pk, pv = Attention(qt, kt, vt, , older, zeros) {BACK} {PRESENT}""",
    "attention whose V is kept": f"{IN_FOUR} c, pk, pv = Attention(qt, kt, vt) {BACK} {PRESENT}",
}


def numbers(heads: int = HEADS, channels: int = CHANNELS) -> dict[str, np.ndarray]:
    """All constants of the texts above, by name."""
    k = heads * channels
    shapes = {
        "wq": (F, k), "wk": (F, k), "wv": (F, k), "wvt": (k, F), "bv": (k,), "wqkv": (F, 3 * k),
        "bqkv": (3 * k,), "wkv": (F, 2 * k), "wo": (k, N), "wp": (k, N), "places": (3, k),
        "wv1": (F, channels), "wv2": (F, 2 * channels), "wk2": (F, 2 * channels),
    }  # fmt: skip
    integers = {
        "heads": [0, 0, heads, channels], "flat": [0, 0, k], "rows": [-1, F], "whole": [k],
        "ends": [heads, channels], "turned": [0, 0, channels, heads], "thirds": [k] * 3,
        "single": [0, 0, 1, channels], "double": [0, 0, 2, channels], "zero": [0], "two": [2],
        "at": [0], "minus": [-1], "last": [-1], "leading": [0, 0], "axis2": [2],
        "twice": [1, 1, heads // 2, 1, 1],
    }  # fmt: skip
    return {
        **weights(**shapes),
        **{name: np.asarray(value, np.int64) for name, value in integers.items()},
        "one": np.asarray(1, np.int64),
        "none": np.asarray(0, np.float32),
    }


def build(body: str, heads: int = HEADS, channels: int = CHANNELS) -> onnx.ModelProto:
    body = body.replace(f"num_heads={HEADS}", f"num_heads={heads}")
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {key: value for key, value in numbers(heads, channels).items() if key in words}
    return model(f"g {TYPES} {{ {body} }}", used, opset=23 if "Attention" in body else 17)


def reads_context(group: list[LinearSite]) -> bool:
    return any(site.weight.initializer.name == "wo" for site in group)


def divided(
    proto: onnx.ModelProto, *, seed: int = 0, backwards: bool = False, only_context: bool = False
) -> onnx.ModelProto:
    """All inputs divided, one after the other."""
    work, rng = canonical(proto), np.random.default_rng(seed)
    groups = [
        group
        for group in shared_inputs(find_sites(work).sites)
        if reads_context(group) or not only_context
    ]
    divisors = {g[0].name: np.exp(rng.uniform(-2, 2, g[0].in_features)) for g in groups}
    order = sorted(divisors, reverse=backwards)
    SmoothingPass({name: divisors[name] for name in order})(work)
    CleanupPass()(work)
    result = ir.to_proto(work)
    onnx.checker.check_model(result, full_check=True)
    return result


def context_folds(proto: onnx.ModelProto) -> bool:
    groups = shared_inputs(find_sites(canonical(proto)).sites)
    return folds(next(group for group in groups if reads_context(group)))


FEEDS = weights(1, x=(2, 3, F))


@pytest.mark.parametrize("name", FOLDED)
def test_the_projection_of_v_takes_the_division(name: str) -> None:
    before = build(FOLDED[name])
    assert context_folds(before)
    after = divided(before, only_context=True)
    assert Counter(operators(after)) <= Counter(operators(before))
    assert_parity(before, after, FEEDS, 1e-5)


@pytest.mark.parametrize("name", MULTIPLIED)
def test_else_the_context_is_multiplied(name: str) -> None:
    before = build(MULTIPLIED[name])
    assert not context_folds(before)
    after = divided(before, only_context=True)
    assert operators(after).count("Mul") == operators(before).count("Mul") + 1
    assert_parity(before, after, FEEDS, 1e-5)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("name", FOLDED)
def test_the_projections_own_inputs_may_be_divided_too(name: str, *, backwards: bool) -> None:
    before = build(FOLDED[name])
    assert_parity(before, divided(before, backwards=backwards), FEEDS, 1e-5)


@given(
    name=st.sampled_from(sorted({**FOLDED, **MULTIPLIED})),
    heads=st.sampled_from([2, 4, 6]),
    channels=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_any_heads(name: str, heads: int, channels: int, seed: int) -> None:
    before = build({**FOLDED, **MULTIPLIED}[name], heads, channels)
    assert parity(before, divided(before, seed=seed), FEEDS) <= 1e-5


@pytest.mark.parametrize("name", ["as exported", "attention of four dimensions", "packed"])
def test_heads_in_another_order_would_show(name: str) -> None:
    """What was divided, with the divisors of V's channels interleaved: h·D + j as j·H + h."""
    before = build(FOLDED[name])
    after = divided(before, only_context=True)
    old, new = (
        {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        for proto in (before, after)
    )
    weight = next(key for key in new if key.startswith(("wv.", "wqkv.")))
    plain = old[weight.split(".")[0]]
    k = HEADS * CHANNELS
    factors = (new[weight] / plain)[0, -k:]
    interleaved = factors.reshape(HEADS, CHANNELS).T.reshape(-1)
    wrong = new[weight].copy()
    wrong[:, -k:] = plain[:, -k:] * interleaved
    tensor = next(t for t in after.graph.initializer if t.name == weight)
    assert parity(before, after, FEEDS) <= 1e-5
    tensor.CopyFrom(numpy_helper.from_array(wrong, weight))
    assert parity(before, after, FEEDS) > 1e-2


@pytest.mark.parametrize("kind", [1, 10])
def test_a_cast_that_changes_nothing_is_passed(kind: int) -> None:
    body = FOLDED["as exported"].replace(
        "vr = Reshape(v,", f"e = Cast<to={kind}>(v) vr = Reshape(r,"
    )
    before = build(body.replace("vr =", "r = Cast<to=1>(e) vr ="))
    size: list[str | int | None] = ["B", "T", HEADS * CHANNELS]
    before.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(name, type_, size)
        for name, type_ in {"v": 1, "e": kind}.items()
    )
    assert context_folds(before) == (kind == 1)
    assert_parity(before, divided(before), FEEDS, 1e-5 if kind == 1 else 1e-2)


def test_a_weight_that_can_be_overridden_stays() -> None:
    before = build(FOLDED["as exported"])
    before.graph.input.append(onnx.helper.make_tensor_value_info("wv", 1, (F, HEADS * CHANNELS)))
    assert not context_folds(before)


def test_v_that_leaves_the_graph_stays() -> None:
    before = build(FOLDED["as exported"])
    before.graph.output.append(onnx.helper.make_tensor_value_info("v", 1, ["B", "T", 12]))
    assert not context_folds(before)
    assert_parity(before, divided(before), FEEDS, 1e-5)


def test_v_behind_a_past_is_left() -> None:
    """ONNX Runtime runs no such node."""
    body = MULTIPLIED["attention with a past"]
    before = build(body.replace("c, pk, pv =", "c =").replace(PRESENT, OUT))
    assert not context_folds(before)


def test_unknown_heads_are_left() -> None:
    """Nothing says where the heads are: their number is computed when the model runs."""
    body = FOLDED["as exported"].replace("Reshape(v, heads)", "Reshape(v, size)")
    before = build(body.replace("vr =", "size = Shape(qr) vr ="))
    assert not context_folds(before)
    assert_parity(before, divided(before), FEEDS, 1e-5)


def _norm(value: str, output: str, prefix: str) -> str:
    """A LayerNormalization, spelled out."""
    text = f""" _m = ReduceMean<axes=[-1]>({value}) _d = Sub({value}, _m) _p = Pow(_d, square)
        _s = ReduceMean<axes=[-1]>(_p) _e = Add(_s, epsilon) _r = Sqrt(_e) _n = Div(_d, _r)
        _g = Mul(_n, gamma) {output} = Add(_g, beta)"""
    return text.replace(" _", f" {prefix}_").replace("(_", f"({prefix}_")


CLASSIC = """g (float[B,T,12] x, int64[B,T] mask) => (float[B,T,12] y) {
    NORM_IN
    qm = MatMul(n, wq) q = Add(qm, bq) qr = Reshape(q, heads) qt = Transpose<perm=[0,2,1,3]>(qr)
    km = MatMul(n, wk) k = Add(km, bk) kr = Reshape(k, heads) kt = Transpose<perm=[0,2,3,1]>(kr)
    vm = MatMul(n, wv) v = Add(vm, bv) vr = Reshape(v, heads) vt = Transpose<perm=[0,2,1,3]>(vr)
    rows = Unsqueeze<axes=[1]>(mask) all = Unsqueeze<axes=[2]>(rows) seen = Cast<to=1>(all)
    hidden = Sub(unit, seen) far = Mul(hidden, large)
    s = MatMul(qt, kt) d = Div(s, root) a = Add(d, far) p = Softmax<axis=3>(a)
    c = MatMul(p, vt) ct = Transpose<perm=[0,2,1,3]>(c) f = Reshape(ct, flat)
    om = MatMul(f, wo) o = Add(om, bo) r = Add(o, n)
    NORM_OUT }"""
"""What the exporters of BERT wrote when ONNX Runtime's fusion was."""


def executed(proto: onnx.ModelProto, folder: Path) -> Counter[str]:
    open_session(proto.SerializeToString(), optimized_path=folder / "optimized.onnx")
    return Counter(operators(onnx.load(folder / "optimized.onnx")))


def test_onnx_runtime_still_fuses_attention(tmp_path: Path) -> None:
    k = HEADS * CHANNELS
    text = CLASSIC.replace("NORM_IN", _norm("x", "n", "i")).replace(
        "NORM_OUT", _norm("r", "y", "o")
    )
    used = {
        **weights(**dict.fromkeys(("wq", "wk", "wv", "wo"), (k, k))),
        **weights(2, **dict.fromkeys(("bq", "bk", "bv", "bo", "gamma", "beta"), (k,))),
        **{name: numbers()[name] for name in ("heads", "flat")},
        "square": np.float32(2), "epsilon": np.float32(1e-5), "unit": np.float32(1),
        "large": np.float32(-10000), "root": np.float32(np.sqrt(CHANNELS)),
    }  # fmt: skip
    before = model(text, {name: np.asarray(value) for name, value in used.items()}, opset=12)
    after = divided(before, only_context=True)
    feeds = {**weights(1, x=(2, 3, k)), "mask": np.array([[1, 1, 1], [1, 1, 0]])}
    assert_parity(before, after, feeds, 1e-5)
    found = executed(before, tmp_path)
    assert found["Attention"] == 1
    assert executed(after, tmp_path) == found
