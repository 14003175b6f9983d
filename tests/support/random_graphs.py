"""Random small graphs that mix the forms of linear layers, for property tests.

A graph is a chain of layers over a value [N, features]. A layer may be a product in one of its
forms (MatMul or Gemm, weight on either side, behind a Transpose, with a bias before or behind, in
a branch of an If, of a stack), a non-linearity or a residual. Weights and biases come from a pool,
so that layers share them, and some values are outputs as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

ROWS = 3
WIDTHS = (4, 6, 7)
MAX_LAYERS = 6


@dataclass
class Builder:
    """A graph that grows by layers."""

    seed: int
    nodes: list[NodeProto] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    value: str = "x"
    width: int = WIDTHS[0]

    def weight(self, kind: str, shape: tuple[int, ...], pick: int) -> str:
        """One of two weights of a kind and shape."""
        name = f"{kind}{pick % 2}_{'x'.join(map(str, shape))}"
        scale = np.sqrt(shape[-1]) if len(shape) > 1 else 1.0
        rng = np.random.default_rng([self.seed, *map(ord, name)])
        array = np.asarray(rng.standard_normal(shape) / scale, np.float32)
        self.arrays.setdefault(name, array)
        return name

    def node(self, op_type: str, *inputs: str, **attributes: object) -> str:
        """Append a node; returns its output."""
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], **attributes))
        return output


Layer = Callable[[Builder, int, int], None]


def matmul(b: Builder, width: int, pick: int) -> None:
    b.value = b.node("MatMul", b.value, b.weight("w", (b.width, width), pick))


def identity_weight(b: Builder, width: int, pick: int) -> None:
    weight = b.node("Identity", b.weight("w", (b.width, width), pick))
    b.value = b.node("MatMul", b.value, weight)


def transposed(b: Builder, width: int, pick: int) -> None:
    weight = b.node("Transpose", b.weight("w", (width, b.width), pick), perm=[1, 0])
    b.value = b.node("MatMul", b.value, weight)


def gemm(b: Builder, width: int, pick: int) -> None:
    trans_a, trans_b, with_c = pick & 1, pick >> 1 & 1, pick >> 2 & 3
    shape = (width, b.width) if trans_b else (b.width, width)
    inputs = [b.node("Transpose", b.value, perm=[1, 0]) if trans_a else b.value]
    inputs.append(b.weight("w", shape, pick >> 4))
    if with_c:
        addends = [(width,), (1, width), (ROWS, width)]
        inputs.append(b.weight("b", addends[with_c - 1], pick))
    b.value = b.node(
        "Gemm", *inputs, transA=trans_a, transB=trans_b, alpha=0.5 + (pick % 3), beta=-0.5
    )


def gemm_of_value(b: Builder, width: int, pick: int) -> None:
    inner = b.node("MatMul", b.value, b.weight("w", (b.width, width), pick))
    b.value = b.node("Gemm", b.value, b.weight("w", (b.width, width), pick + 1), inner, beta=0.25)


def on_left(b: Builder, width: int, pick: int) -> None:
    column = b.node("Transpose", b.value, perm=[1, 0])
    weight = b.weight("w", (width, b.width), pick)
    product = b.node("Gemm" if pick & 4 else "MatMul", weight, column)
    if pick & 8:
        product = b.node("Add", product, b.weight("b", (width, 1), pick))
    b.value = b.node("Transpose", product, perm=[1, 0])


def stack(b: Builder, width: int, pick: int) -> None:
    product = b.node("MatMul", b.value, b.weight("e", (2, b.width, width), pick))
    b.value = b.node("ReduceMean", product, axes=[0], keepdims=0)


def bias(b: Builder, width: int, pick: int) -> None:
    shape = [(b.width,), (1,), (1, b.width), (ROWS, b.width)][pick & 3]
    operands = [b.value, b.weight("b", shape, pick >> 2)]
    b.value = b.node("Add", *(operands[::-1] if pick & 8 else operands))


def residual(b: Builder, width: int, pick: int) -> None:
    other = b.node("MatMul", "x", b.weight("w", (WIDTHS[0], b.width), pick))
    b.value = b.node("Add", b.value, other)
    del width


def read_twice(b: Builder, width: int, pick: int) -> None:
    product = b.node("MatMul", b.value, b.weight("w", (b.width, width), pick))
    added = b.node("Add", product, b.weight("b", (width,), pick))
    b.value = b.node("Mul", added, b.node("Tanh", product))


def output_too(b: Builder, width: int, pick: int) -> None:
    matmul(b, width, pick)
    b.outputs.append(b.value)


def branch(b: Builder, width: int, pick: int) -> None:
    def body(name: str, op_type: str, weight: str) -> GraphProto:
        nodes = [
            helper.make_node("MatMul", [b.value, weight], ["p"]),
            helper.make_node(op_type, ["p"], ["q"]),
        ]
        result = helper.make_tensor_value_info("q", TensorProto.FLOAT, ["N", width])
        return helper.make_graph(nodes, name, [], [result])

    first, second = (b.weight("w", (b.width, width), pick + i) for i in range(2))
    b.value = b.node(
        "If",
        "flag",
        then_branch=body("yes", "Tanh", first),
        else_branch=body("no", "Neg", second),
    )


def tanh(b: Builder, width: int, pick: int) -> None:
    b.value = b.node("Tanh", b.value)


CHANGING_WIDTH: tuple[Layer, ...] = (
    matmul, identity_weight, transposed, gemm, gemm_of_value, on_left, stack, read_twice,
    output_too, branch,
)  # fmt: skip
KEEPING_WIDTH: tuple[Layer, ...] = (bias, residual, tanh)


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """A valid model with inputs x [N, 4] and flag, run with N = ``ROWS``."""
    builder = Builder(draw(st.integers(0, 1000)))
    layers = draw(
        st.lists(
            st.tuples(
                st.sampled_from(CHANGING_WIDTH + KEEPING_WIDTH),
                st.sampled_from(WIDTHS),
                st.integers(0, 63),
            ),
            min_size=1,
            max_size=MAX_LAYERS,
        )
    )
    for layer, width, pick in layers:
        layer(builder, width, pick)
        if layer in CHANGING_WIDTH:
            builder.width = width
    builder.outputs.append(builder.node("Identity", builder.value))
    return _model(builder, inferred=draw(st.booleans()))


def _model(builder: Builder, *, inferred: bool) -> onnx.ModelProto:
    def tensor(name: str, kind: int, shape: list[int | str] | None) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(
        builder.nodes,
        "random",
        [tensor("x", TensorProto.FLOAT, [ROWS, WIDTHS[0]]), tensor("flag", TensorProto.BOOL, [])],
        [tensor(name, TensorProto.FLOAT, None) for name in builder.outputs],
        [numpy_helper.from_array(array, name) for name, array in builder.arrays.items()],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    result = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    if not inferred:
        del result.graph.value_info[:]
    onnx.checker.check_model(result, full_check=True)
    return result


def feeds(flag: bool) -> dict[str, np.ndarray]:
    """Inputs for any of the graphs."""
    x = np.random.default_rng(0).standard_normal((ROWS, WIDTHS[0])).astype(np.float32)
    return {"x": x, "flag": np.array(flag)}
