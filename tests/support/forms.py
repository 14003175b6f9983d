"""Graphs with one linear layer in each of the forms that exporters write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from graphs import model, weights


@dataclass(frozen=True)
class Form:
    """A graph with one kind of linear layer, and how many sites it has."""

    text: str
    weights: Mapping[str, tuple[int, ...]]
    inputs: Mapping[str, tuple[int, ...]]
    sites: int = 1
    in_graph: bool = True

    def build(self, opset: int = 17, dtype: type = np.float32) -> onnx.ModelProto:
        text = self.text.replace("float", {"float16": "float16"}.get(np.dtype(dtype).name, "float"))
        return model(text, weights(1, dtype, **self.weights), opset)

    def feeds(self, dtype: type = np.float32) -> dict[str, np.ndarray]:
        arrays = weights(2, dtype, **self.inputs)
        if "flag" in arrays:
            arrays["flag"] = np.array(True)
        return arrays


def matmul(before: str = "x, w", x: str = "N,8", y: str = "N,6", then: str = "") -> str:
    """One MatMul, perhaps with something behind it."""
    name = "m" if then else "y"
    return f"g (float[{x}] x) => (float[{y}] y) {{ {name} = MatMul({before}) {then} }}"


def gemm(attributes: str, x: str = "N,8", inputs: str = "x, w", y: str = "N,6") -> str:
    """One Gemm."""
    return f"g (float[{x}] x) => (float[{y}] y) {{ y = Gemm{attributes}({inputs}) }}"


W, T = {"w": (8, 6)}, {"w": (6, 8)}
FORMS = {
    "MatMul": Form(matmul(), W, {"x": (5, 8)}),
    "vector": Form(matmul(x="8", y="6"), W, {"x": (8,)}),
    "3-D input": Form(matmul(x="B,N,8", y="B,N,6"), W, {"x": (2, 5, 8)}),
    "4-D input": Form(matmul(x="A,B,N,8", y="A,B,N,6"), W, {"x": (2, 3, 5, 8)}),
    "no rows": Form(matmul(), W, {"x": (0, 8)}),
    "bias last": Form(matmul(then="y = Add(m, b)"), {**W, "b": (6,)}, {"x": (5, 8)}),
    "bias first": Form(matmul(then="y = Add(b, m)"), {**W, "b": (6,)}, {"x": (5, 8)}),
    "0-D bias": Form(matmul(then="y = Add(m, b)"), {**W, "b": ()}, {"x": (5, 8)}),
    "bias of one element": Form(matmul(then="y = Add(m, b)"), {**W, "b": (1,)}, {"x": (5, 8)}),
    "2-D bias": Form(matmul(then="y = Add(m, b)"), {**W, "b": (1, 6)}, {"x": (5, 8)}),
    "3-D bias": Form(
        matmul(x="B,N,8", y="B,N,6", then="y = Add(m, b)"),
        {**W, "b": (1, 1, 6)},
        {"x": (2, 5, 8)},
    ),
    "bias that adds axes": Form(
        matmul(y="1,N,6", then="y = Add(m, b)"), {**W, "b": (1, 1, 6)}, {"x": (5, 8)}
    ),
    "bias of another shape": Form(matmul(then="y = Add(m, b)"), {**W, "b": (5, 6)}, {"x": (5, 8)}),
    "bias in an Identity": Form(
        matmul(then="i = Identity(b) y = Add(m, i)"), {**W, "b": (6,)}, {"x": (5, 8)}
    ),
    "residual": Form(
        "g (float[N,8] x, float[N,6] z) => (float[N,6] y) { m = MatMul(x, w) y = Add(m, z) }",
        W,
        {"x": (5, 8), "z": (5, 6)},
    ),
    "product that is an output too": Form(
        "g (float[N,8] x) => (float[N,6] m, float[N,6] y) { m = MatMul(x, w) y = Add(m, b) }",
        {**W, "b": (6,)},
        {"x": (5, 8)},
    ),
    "product read twice": Form(
        matmul(then="r = Relu(m) a = Add(m, b) y = Add(a, r)"), {**W, "b": (6,)}, {"x": (5, 8)}
    ),
    "added to itself": Form(matmul(then="y = Add(m, m)"), W, {"x": (5, 8)}),
    "behind a Transpose": Form(
        "g (float[N,8] x) => (float[N,6] y) { t = Transpose<perm=[1,0]>(w) y = MatMul(x, t) }",
        T,
        {"x": (5, 8)},
    ),
    "behind a Transpose without perm": Form(
        "g (float[N,8] x) => (float[N,6] y) { t = Transpose(w) y = MatMul(x, t) }",
        T,
        {"x": (5, 8)},
    ),
    "behind two Transposes and an Identity": Form(
        "g (float[N,8] x) => (float[N,6] y) "
        "{ t = Transpose(w) i = Identity(t) u = Transpose(i) y = MatMul(x, u) }",
        W,
        {"x": (5, 8)},
    ),
    "Gemm": Form(gemm("", inputs="x, w, b"), {**W, "b": (6,)}, {"x": (5, 8)}),
    "Gemm without C": Form(gemm(""), W, {"x": (5, 8)}),
    "Gemm transB": Form(gemm("<transB=1>", inputs="x, w, b"), {**T, "b": (1, 6)}, {"x": (5, 8)}),
    "Gemm transA": Form(
        gemm("<transA=1>", x="8,N", inputs="x, w, b"), {**W, "b": (1,)}, {"x": (8, 5)}
    ),
    "Gemm transA transB": Form(
        gemm("<transA=1,transB=1>", x="8,N", inputs="x, w, b"), {**T, "b": ()}, {"x": (8, 5)}
    ),
    "Gemm alpha beta": Form(
        gemm("<alpha=0.5,beta=-2.0>", inputs="x, w, b"), {**W, "b": (6,)}, {"x": (5, 8)}
    ),
    "Gemm alpha without C": Form(gemm("<alpha=3.0,beta=0.1>"), W, {"x": (5, 8)}),
    "Gemm beta 0": Form(gemm("<beta=0.0>", inputs="x, w, b"), {**W, "b": (6,)}, {"x": (5, 8)}),
    "Gemm C for every row": Form(gemm("", inputs="x, w, b"), {**W, "b": (5, 6)}, {"x": (5, 8)}),
    "Gemm C a column": Form(gemm("", inputs="x, w, b"), {**W, "b": (5, 1)}, {"x": (5, 8)}),
    "Gemm C computed": Form(
        "g (float[N,8] x, float[N,6] z) => (float[N,6] y) "
        "{ c = Relu(z) y = Gemm<alpha=2.0,beta=0.5>(x, w, c) }",
        W,
        {"x": (5, 8), "z": (5, 6)},
    ),
    "weight on the left": Form(matmul("w, x", x="8,N", y="6,N"), T, {"x": (8, 5)}),
    "weight on the left, batches": Form(
        matmul("w, x", x="A,B,8,N", y="A,B,6,N"), T, {"x": (2, 3, 8, 5)}
    ),
    "weight on the left, bias": Form(
        matmul("w, x", x="B,8,N", y="B,6,N", then="y = Add(b, m)"),
        {**T, "b": (6, 1)},
        {"x": (2, 8, 5)},
    ),
    "weight on the left, 3-D bias": Form(
        matmul("w, x", x="B,8,N", y="B,6,N", then="y = Add(m, b)"),
        {**T, "b": (1, 6, 1)},
        {"x": (2, 8, 5)},
    ),
    "weight on the left, Add along the other axis": Form(
        matmul("w, x", x="8,N", y="6,6", then="y = Add(m, b)"), {**T, "b": (6,)}, {"x": (8, 6)}
    ),
    "weight on the left, transposed": Form(
        "g (float[8,N] x) => (float[6,N] y) { t = Transpose(w) y = MatMul(t, x) }",
        W,
        {"x": (8, 5)},
    ),
    "Gemm on the left": Form(
        gemm("<alpha=0.5,beta=2.0>", x="8,N", inputs="w, x, b", y="6,N"),
        {**T, "b": (6, 1)},
        {"x": (8, 5)},
    ),
    "Gemm on the left, transA transB": Form(
        gemm("<transA=1,transB=1>", inputs="w, x, b", y="6,N"), {**W, "b": (6, 1)}, {"x": (5, 8)}
    ),
    "Gemm on the left, a row added": Form(
        gemm("", x="8,N", inputs="w, x, b", y="6,6"), {**T, "b": (6,)}, {"x": (8, 6)}
    ),
    "experts": Form(
        matmul(x="3,N,8", y="3,N,6", then="y = Add(m, b)"),
        {"w": (3, 8, 6), "b": (3, 1, 6)},
        {"x": (3, 5, 8)},
    ),
    "experts, one bias for all": Form(
        matmul(x="3,N,8", y="3,N,6", then="y = Add(b, m)"),
        {"w": (3, 8, 6), "b": (6,)},
        {"x": (3, 5, 8)},
    ),
    "experts, 4-D, bias": Form(
        matmul(x="B,2,3,N,8", y="B,2,3,N,6", then="y = Add(m, b)"),
        {"w": (2, 3, 8, 6), "b": (2, 1, 1, 6)},
        {"x": (4, 2, 3, 5, 8)},
    ),
    "experts on the left, bias": Form(
        matmul("w, x", x="3,8,N", y="3,6,N", then="y = Add(m, b)"),
        {"w": (3, 6, 8), "b": (3, 6, 1)},
        {"x": (3, 8, 5)},
    ),
    "experts, a bias for each token": Form(
        matmul(x="3,5,8", y="3,5,6", then="y = Add(m, b)"),
        {"w": (3, 8, 6), "b": (3, 5, 6)},
        {"x": (3, 5, 8)},
    ),
    "experts, input broadcast": Form(
        matmul(x="1,N,8", y="3,N,6"), {"w": (3, 8, 6)}, {"x": (1, 5, 8)}
    ),
    "experts, transposed": Form(
        "g (float[3,N,8] x) => (float[3,N,6] y) "
        "{ t = Transpose<perm=[0,2,1]>(w) y = MatMul(x, t) }",
        {"w": (3, 6, 8)},
        {"x": (3, 5, 8)},
    ),
    "experts, 4-D, on the left": Form(
        matmul("w, x", x="B,3,8,N", y="B,3,6,N"), {"w": (1, 3, 6, 8)}, {"x": (2, 3, 8, 5)}
    ),
    "shared weight": Form(
        "g (float[N,8] x, float[N,8] z) => (float[N,6] y) "
        "{ a = MatMul(x, w) b = MatMul(z, w) y = Add(a, b) }",
        W,
        {"x": (5, 8), "z": (5, 8)},
        sites=2,
    ),
    "shared bias": Form(
        "g (float[N,8] x) => (float[N,6] y, float[N,6] z) "
        "{ m = MatMul(x, w) y = Add(m, b) n = MatMul(x, v) z = Add(b, n) }",
        {**W, "v": (8, 6), "b": (6,)},
        {"x": (5, 8)},
        sites=2,
    ),
    "bias with another reader": Form(
        matmul(then="a = Add(m, b) y = Mul(a, b)"), {**W, "b": (6,)}, {"x": (5, 8)}
    ),
    "bias that is an output": Form(
        "g (float[N,8] x) => (float[N,6] y, float[6] c) "
        "{ m = MatMul(x, w) y = Add(m, b) c = Identity(b) }",
        {**W, "b": (6,)},
        {"x": (5, 8)},
    ),
    "bias that is itself an output": Form(
        "g (float[N,8] x) => (float[N,6] y, float[6] b) { m = MatMul(x, w) y = Add(m, b) }",
        {**W, "b": (6,)},
        {"x": (5, 8)},
    ),
    "merged weights": Form(
        "g (float[N,8] x) => (float[N,6] y) "
        "{ i = Identity(w) a = MatMul(x, w) b = MatMul(x, i) y = Mul(a, b) }",
        W,
        {"x": (5, 8)},
        sites=2,
    ),
    "chain": Form(
        "g (float[N,8] x) => (float[N,4] y) "
        "{ m = MatMul(x, w) h = Add(m, b) r = Tanh(h) y = Gemm<transB=1>(r, v, c) }",
        {**W, "b": (6,), "v": (4, 6), "c": (4,)},
        {"x": (5, 8)},
        sites=2,
    ),
    "packed QKV": Form(
        "g (float[N,8] x) => (float[N,4] y) { m = MatMul(x, w) a = Add(b, m) "
        "q, k, v = Split<axis=-1>(a) p = Mul(q, k) y = Add(p, v) }",
        {"w": (8, 12), "b": (12,)},
        {"x": (5, 8)},
    ),
    "branches of an If, weights outside": Form(
        "g (float[N,8] x, bool flag) => (float[N,6] y) { y = If(flag) <"
        "then_branch = t () => (float[N,6] a) { m = MatMul(x, w) a = Add(m, b) }, "
        "else_branch = e () => (float[N,6] c) { n = MatMul(x, w) c = Relu(n) }> }",
        {**W, "b": (6,)},
        {"x": (5, 8), "flag": ()},
        sites=2,
        in_graph=False,
    ),
}
