"""Feed-forward networks are found in every spelling, and nothing else is taken for one."""

from __future__ import annotations

import re

import ffn_forms
import pytest
from ffn_forms import SPELLINGS, H, K, N, arrays, is_read
from graphs import canonical, model

from compress_onnx.graph_passes.sites.ffn import FFNTable, find_ffns
from compress_onnx.graph_passes.sites.find import find_sites


def table(text: str) -> FFNTable:
    numbers = {name: array for name, array in arrays().items() if is_read(name, text)}
    return find_ffns(find_sites(canonical(model(text, numbers, opset=20))).sites)


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_one_network(name):
    found = find_ffns(find_sites(canonical(ffn_forms.build(name))).sites)
    (ffn,) = found.ffns
    assert ffn.neurons == H
    assert ffn.down.out_features == N
    assert len(ffn.ups) == (2 if name == "gated" else 1)
    assert ffn.parameters_per_neuron == len(ffn.ups) * K + N
    assert set(found.reasons) == {up.name for up in ffn.ups}


def test_networks_share_no_layer():
    text = f"""g (float[B,T,{K}] x) => (float[B,T,{H}] y) {{ m = MatMul(x, w1) a = Relu(m)
        n = MatMul(a, w2) b = Relu(n) y = MatMul(b, w4) }}"""
    numbers = {name: array for name, array in arrays().items() if name in text}
    numbers["w4"] = arrays()["w2"].T.copy()
    found = find_ffns(find_sites(canonical(model(text, numbers, opset=20))).sites)
    (first,) = found.ffns
    assert first.neurons == H
    assert sum("shares a layer" in reason for reason in found.reasons.values()) == 1


OUTPUT = f"=> (float[B,T,{N}] y)"
HIDDEN_OUTPUT = f"=> (float[B,T,{N}] y, float[B,T,{H}] h)"
INPUT = f"g (float[B,T,{K}] x)"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            f"{INPUT} {OUTPUT} {{ m = MatMul(x, w1) h = Softmax(m) y = MatMul(h, w2) }}",
            "Softmax, which is not elementwise",
        ),
        (
            f"{INPUT} {HIDDEN_OUTPUT} {{ m = MatMul(x, w1) h = Relu(m) y = MatMul(h, w2) }}",
            "is an output of the graph",
        ),
        (
            f"""{INPUT} {OUTPUT} {{ m = MatMul(x, w1) h = Relu(m) d = MatMul(h, w2)
                s = ReduceMax(h) y = Add(d, s) }}""",
            "ReduceMax '.*' reads the hidden value, too",
        ),
        (
            f"""{INPUT} {OUTPUT} {{ m = MatMul(x, w1) n = MatMul(x, w1) a = Relu(m) h = Mul(a, n)
                y = MatMul(h, w2) }}""",
            "is shared",
        ),
        (
            f"""g (float[B,T,{K}] x, float[B,T,{H}] r) {OUTPUT} {{ m = MatMul(x, w1)
                h = Add(m, r) y = MatMul(h, w2) }}""",
            "computed outside",
        ),
        (
            f"""g (float[B,T,{H}] x) {OUTPUT} {{ h = Relu(x) y = MatMul(h, w2) }}""",
            "computed outside",
        ),
        (  # two rows become one, and two again
            f"""{INPUT} {OUTPUT} {{ m = MatMul(x, w1) r = Reshape(m, pairs) h = Relu(r)
                e = Reshape(h, hidden) y = MatMul(e, w2) }}""",
            "may not keep the neurons together",
        ),
        (  # nobody says that the last axis has all of them
            f"""{INPUT} {OUTPUT} {{ m = MatMul(x, w1) u = Unsqueeze(m, last)
                h = Squeeze(u, last) y = MatMul(h, w2) }}""",
            "may not keep the neurons together",
        ),
        (
            f"""{INPUT} {OUTPUT} {{ m = MatMul(x, w1) h = Reshape(m, copied)
                y = MatMul(h, w2) }}""",
            "may copy the number of neurons",
        ),
        (
            f"""g (float[B,{K}] x) => (float[C,{H},{N}] y) {{ m = MatMul(x, w1)
                h = Reshape(m, copied_last) y = MatMul(h, w2) }}""",
            "may copy the number of neurons",
        ),
        (
            f"""g (float[B,T,{K}] x, int64[3] sizes) {OUTPUT} {{ m = MatMul(x, w1)
                h = Reshape(m, sizes) y = MatMul(h, w2) }}""",
            "may not keep the neurons together",
        ),
        (
            f"""g (float[B,T,{K}] x, int64[1] some) {OUTPUT} {{ m = MatMul(x, w1)
                t = Concat<axis=0>(front, some) h = Reshape(m, t) y = MatMul(h, w2) }}""",
            "the number of neurons is computed",
        ),
        (
            f"""{INPUT} {OUTPUT} {{ m = MatMul(x, w1) h = Relu(m) s = Shape(h)
                n = Slice(s, last, beyond) f = Cast<to=1>(n) d = MatMul(h, w2) y = Div(d, f) }}""",
            "tells others how many neurons",
        ),
        (
            f"""{INPUT} => (float[B,T,{N}] y, int64[3] s) {{ m = MatMul(x, w1) h = Relu(m)
                s = Shape(h) y = MatMul(h, w2) }}""",
            "tells others how many neurons",
        ),
        (  # of how many axes is unknown
            f"""{INPUT} {OUTPUT} {{ m = MatMul(x, w1) h = Relu(m) s = Shape(h)
                n = Gather(s, i1) f = Cast<to=1>(n) d = MatMul(h, w2) y = Div(d, f) }}""",
            "tells others how many neurons",
        ),
        (
            f"""{INPUT} => (float[B,T,{N}] y, float[B,T,{H}] z) {{ m = MatMul(x, w1) h = Relu(m)
                s = Shape(h) n = Slice(s, last, beyond) t = Concat<axis=0>(front, n)
                z = Expand(one, t) e = Reshape(h, t) y = MatMul(e, w2) }}""",
            "tells others how many neurons",
        ),
    ],
)
def test_what_is_none_has_a_reason(text, reason):
    found = table(text)
    assert not found.ffns
    (last,) = [name for name in found.reasons if "w2" in name] or [list(found.reasons)[-1]]
    assert re.search(reason, found.reasons[last])
