"""Divided inputs and multiplied weights compute what they computed."""

from __future__ import annotations

import ffn_forms
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from ffn_forms import SPELLINGS, K
from graphs import assert_parity, canonical, model, operators, weights

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass
from compress_onnx.graph_passes.rewriting.smoothing import SmoothingPass, shared_inputs
from compress_onnx.graph_passes.sites.find import find_sites

DIVISOR = np.geomspace(0.1, 20, K)
TYPES = f"(float[B,T,{K}] x) => (float[B,T,{K}] y)"
NORMS = {
    "one node": f"g {TYPES} {{ n = LayerNormalization(x, s, b) y = MatMul(n, w) }}",
    "without shift": f"g {TYPES} {{ n = RMSNormalization(x, s) y = MatMul(n, w) }}",
    "spelled out": f"""g {TYPES} {{
        m = ReduceMean<axes=[-1]>(x) d = Sub(x, m) p = Mul(d, d) v = ReduceMean<axes=[-1]>(p)
        e = Add(v, eps) q = Sqrt(e) u = Div(d, q) t = Mul(u, s) n = Add(t, b)
        y = MatMul(n, w) }}""",
    "two readers": f"""g {TYPES} {{
        n = LayerNormalization(x, s, b) l = MatMul(n, w) r = MatMul(n, v) y = Add(l, r) }}""",
}


def divided(proto: onnx.ModelProto, divisor: np.ndarray) -> onnx.ModelProto:
    work = canonical(proto)
    groups = shared_inputs(find_sites(work).sites)
    sizes = {group[0].name: group[0].in_features for group in groups}
    found = {name: divisor for name, size in sizes.items() if size == divisor.size}
    assert found
    assert SmoothingPass(found)(work).modified
    CleanupPass()(work)
    result = ir.to_proto(work)
    onnx.checker.check_model(result, full_check=True)
    return result


def norm(name: str, text: str | None = None) -> onnx.ModelProto:
    numbers = weights(s=(K,), b=(K,), w=(K, K), v=(K, K))
    text = text or NORMS[name]
    used = {
        key: value for key, value in numbers.items() if f" {key})" in text or f" {key}," in text
    }
    if name == "spelled out":
        used["eps"] = np.asarray(np.float32(1e-5))
    return model(text, used, opset=23 if name == "without shift" else 17)


@pytest.mark.parametrize("name", SPELLINGS)
def test_networks_are_what_they_were(name: str) -> None:
    before = ffn_forms.build(name)
    after = divided(before, DIVISOR)
    assert_parity(before, after, ffn_forms.feeds(name))
    assert operators(after).count("Mul") == operators(before).count("Mul") + 1


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_takes_the_division(name: str) -> None:
    before = norm(name)
    after = divided(before, DIVISOR)
    assert operators(after) == operators(canonical_proto(before))
    assert_parity(before, after, weights(1, x=(2, 3, K)))


def test_the_first_of_two_products_takes_the_division() -> None:
    before = norm("chain", f"g {TYPES} {{ n = MatMul(x, v) y = MatMul(n, w) }}")
    work = canonical(before)
    second = find_sites(work).sites[1]
    assert second.input.name == "n"
    SmoothingPass({second.name: DIVISOR})(work)
    after = ir.to_proto(work)
    assert operators(after) == ["MatMul", "MatMul"]
    assert_parity(before, after, weights(1, x=(2, 3, K)))


def test_a_norm_that_others_read_stays() -> None:
    text = NORMS["one node"].replace("y = MatMul(n, w)", "m = MatMul(n, w) y = Add(m, n)")
    before = norm("residual", text)
    after = divided(before, DIVISOR)
    assert sorted(operators(after)) == ["Add", "LayerNormalization", "MatMul", "Mul"]
    assert_parity(before, after, weights(1, x=(2, 3, K)))


def test_a_norm_whose_output_leaves_the_graph_stays() -> None:
    text = NORMS["one node"].replace(f"(float[B,T,{K}] y)", f"(float[B,T,{K}] y, float[B,T,{K}] n)")
    before = norm("output", text)
    after = divided(before, DIVISOR)
    assert "Mul" in operators(after)
    assert_parity(before, after, weights(1, x=(2, 3, K)))


def test_a_weight_of_two_inputs_stays() -> None:
    proto = model(
        f"g {TYPES} {{ a = MatMul(x, w) r = Relu(a) y = MatMul(r, w) }}", weights(w=(K, K))
    )
    assert shared_inputs(find_sites(canonical(proto)).sites) == []


@pytest.mark.parametrize(
    ("divisors", "message"),
    [
        ({"none": DIVISOR}, "no such layer"),
        ({"w": np.ones(K + 1)}, f"reads {K} inputs, not {K + 1}"),
    ],
)
def test_what_does_not_fit_is_refused(divisors: dict[str, np.ndarray], message: str) -> None:
    work = canonical(model(f"g {TYPES} {{ y = MatMul(x, w) }}", weights(w=(K, K))))
    name = find_sites(work).sites[0].name
    with pytest.raises(RequestError, match=message):
        SmoothingPass({name if key == "w" else key: d for key, d in divisors.items()})(work)


def canonical_proto(proto: onnx.ModelProto) -> onnx.ModelProto:
    return ir.to_proto(canonical(proto))
