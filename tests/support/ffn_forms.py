"""Feed-forward networks in every spelling; half of their neurons do the same as the others."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from graphs import model

K, H, N = 6, 16, 5
HALF = H // 2
LENGTH = 7

_TYPES = f"(float[B,T,{K}] x) => (float[B,T,{N}] y)"
_FLAT = f"(float[B,{K}] x) => (float[B,{N}] y)"
_UP = "m = MatMul(x, w1) a = Add(m, b1)"
_DOWN = "d = MatMul(h, w2) y = Add(d, b2)"
_ERF = """
    q = Div(a, root2) e = Erf(q) p = Add(e, one) t = Mul(a, p) h = Mul(t, half)
"""
_TANH = """
    c = Pow(a, three) s = Mul(c, small) u = Add(a, s) v = Mul(u, rootpi) t = Tanh(v)
    p = Add(t, one) r = Mul(a, half) h = Mul(r, p)
"""

_GEMM_UP = "f = Reshape(x, rows_k) m = Gemm(f, w1, b1)"
_GEMM_DOWN = "d = Gemm(e, w2, b2)"
_SIZES = """
    s = Shape(x) s0 = Gather(s, i0) s1 = Gather(s, i1)
    u0 = Unsqueeze(s0, axis) u1 = Unsqueeze(s1, axis)
    t = Concat<axis=0>(u0, u1, neurons) a = Reshape(m, t)
"""
_OWN_SIZES = """
    o = Shape(h) o0 = Gather(o, i0) o1 = Gather(o, i1) z = Slice(o, last, beyond, axis)
    q = Squeeze(z, axis) q1 = Unsqueeze(q, axis) c = Concat<axis=0>(last, q1) e = Reshape(h, c)
    v0 = Unsqueeze(o0, axis) v1 = Unsqueeze(o1, axis) back = Concat<axis=0>(v0, v1, width)
"""

SPELLINGS: Mapping[str, str] = {
    "relu": f"g {_TYPES} {{ {_UP} h = Relu(a) {_DOWN} }}",
    "identity": f"g {_TYPES} {{ m = MatMul(x, w1) h = Identity(m) y = MatMul(h, w2) }}",
    "erf": f"g {_TYPES} {{ {_UP} {_ERF} {_DOWN} }}",
    "tanh": f"g {_TYPES} {{ {_UP} {_TANH} {_DOWN} }}",
    "gelu": f'g {_TYPES} {{ {_UP} h = Gelu<approximate="tanh">(a) {_DOWN} }}',
    "constant nodes": f"""g {_TYPES} {{
        {_UP} r = Constant<value = float {{1.4142135}}>() q = Div(a, r) e = Erf(q)
        o = Constant<value = float[1] {{1.0}}>() p = Add(e, o) t = Mul(a, p) h = Mul(t, half)
        {_DOWN} }}""",
    "silu": f"g {_TYPES} {{ {_UP} s = Sigmoid(a) h = Mul(a, s) {_DOWN} }}",
    "slopes": f"g {_TYPES} {{ {_UP} h = PRelu(a, slope) {_DOWN} }}",
    "clipped": f"g {_TYPES} {{ {_UP} h = Clip(a, zero, six) {_DOWN} }}",
    "no biases": f"g {_TYPES} {{ m = MatMul(x, w1) h = Relu(m) y = MatMul(h, w2) }}",
    "gated": f"""g {_TYPES} {{
        gate = MatMul(x, w1) s = Sigmoid(gate) f = Mul(gate, s) up = MatMul(x, w3)
        h = Mul(f, up) y = MatMul(h, w2) }}""",
    "gemm": f"""g {_FLAT} {{
        a = Gemm<transB=1>(x, w1t, b1) h = Relu(a) y = Gemm<transB=1, beta=0.5>(h, w2t, b2) }}""",
    "gemm without bias": f"g {_FLAT} {{ a = Gemm(x, w1) h = Tanh(a) y = Gemm<alpha=2.0>(h, w2) }}",
    "transposed": f"""g {_TYPES} {{
        t1 = Transpose<perm=[1,0]>(w1t) a = MatMul(x, t1) h = Relu(a)
        t2 = Transpose<perm=[1,0]>(w2t) y = MatMul(h, t2) }}""",
    "masked": f"""g (float[B,T,{K}] x, float[B,T,1] mask) => (float[B,T,{N}] y) {{
        {_UP} r = Relu(a) h = Mul(r, mask) {_DOWN} }}""",
    "told by constants": f"""g {_TYPES} {{
        {_GEMM_UP} a = Reshape(m, hidden) h = Tanh(a) e = Reshape(h, rows) {_GEMM_DOWN}
        y = Reshape(d, outputs) }}""",
    "told by sizes of the input": f"""g {_TYPES} {{
        {_GEMM_UP} {_SIZES} h = PRelu(a, slope) e = Reshape(h, rows) {_GEMM_DOWN}
        y = Reshape(d, outputs) }}""",
    "told by sizes of its own": f"""g {_TYPES} {{
        {_GEMM_UP} {_SIZES} h = Tanh(a) {_OWN_SIZES} {_GEMM_DOWN}
        y = Reshape(d, back) }}""",
    "other axes": f"""g {_FLAT}
        <float[1,B,{H}] u, float[1,B,{H}] e, float[B,{H}] k, float[B,{H}] h> {{
        {_UP} u = Unsqueeze(a, axis) r = Tanh(u) e = Reshape(r, copied) k = Squeeze(e, axis)
        h = Flatten(k) {_DOWN} }}""",
}


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """The numbers of all operands; neuron j and j + H/2 have the same in front of them."""
    rng = np.random.default_rng(seed)

    def twice(*shape: int) -> np.ndarray:
        return np.concatenate([rng.standard_normal((*shape, HALF))] * 2, axis=-1)

    found = {
        "w1": twice(K),
        "w3": twice(K),
        "b1": twice(),
        "slope": twice() ** 2 / 10,
        "w2": rng.standard_normal((H, N)),
        "b2": rng.standard_normal(N),
        "root2": np.sqrt(2),
        "rootpi": np.sqrt(2 / np.pi),
        "one": 1.0,
        "half": np.array([0.5]),
        "three": 3.0,
        "small": 0.044715,
        "zero": 0.0,
        "six": 1.5,
    }
    integers = {
        "rows_k": [-1, K],
        "rows": [-1, H],
        "hidden": [-1, LENGTH, H],
        "outputs": [-1, LENGTH, N],
        "copied": [0, 0, -1],
        "copied_last": [-1, 0, H],
        "pairs": [-1, 2 * H],
        "front": [-1, LENGTH],
        "neurons": [H],
        "width": [N],
        "i0": 0,
        "i1": 1,
        "axis": [0],
        "last": [-1],
        "beyond": [np.iinfo(np.int64).max],
    }
    found |= {"w1t": found["w1"].T.copy(), "w2t": found["w2"].T.copy()}
    return {
        **{name: np.asarray(array, np.float32) for name, array in found.items()},
        **{name: np.asarray(array, np.int64) for name, array in integers.items()},
    }


def build(name: str, seed: int = 0) -> onnx.ModelProto:
    """The network in the spelling ``name``."""
    text = SPELLINGS[name]
    read = {name: array for name, array in arrays(seed).items() if is_read(name, text)}
    return model(text, read, opset=20)


def is_read(name: str, text: str) -> bool:
    """Whether a node of ``text`` has the operand ``name``."""
    return any(f"{before}{name}{after}" in text for before in "( " for after in ",)")


def feeds(name: str, count: int = 4, length: int = LENGTH, seed: int = 1) -> dict[str, np.ndarray]:
    """Inputs for it."""
    rng = np.random.default_rng(seed)
    if "gemm" in name or name == "other axes":
        return {"x": rng.standard_normal((count * length, K)).astype(np.float32)}
    found = {"x": rng.standard_normal((count, length, K)).astype(np.float32)}
    if name == "masked":
        found["mask"] = (rng.random((count, length, 1)) < 0.7).astype(np.float32)
    return found
