"""A compressed model with its distance from the original as an output, and the gradient of that.

For values v that both models compute, with what the original computed fed as the target, the graph
ends in the loss::

    d_v  = v − target_v
    loss = Σ_v Σ_p weight_v(p)·‖d_v(p)‖²  +  Σ_v Σ_s ‖Σ_t share_v(s, t)·d_v(s, t)‖²
           − Σ_s Σ_c label_o(s, c)·log softmax(o(s))_c

over positions p, and over samples s with their positions t; the last term is there for one output o
of logits, where labels are. Weights, shares and labels are fed too: they hold the padding mask and
every normalization (:mod:`pipeline.recover.teacher`), so the graph knows of none.

The gradient by the trained weights, which are inputs of the graph, comes from its adjoint
(:mod:`pipeline.evidence.adjoint`).

Layers that are going to multiply integers do so in effect already
(:mod:`pipeline.recover.rounding`).

Two things make the gradient fast (measured on a 6-layer encoder: 0.4 s against 1.0 s a step):
products with a trained matrix are written on rows, ``[positions, K]·[K, N]``, as otherwise their
gradient is one matrix a sample, summed afterwards; and loss and gradient come from one run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compress_onnx.graph_passes.arrays import Array, Float32
from compress_onnx.pipeline.evidence.adjoint import Adjoint, in_single, prepared
from compress_onnx.pipeline.recover.rounding import RoundedGraph, Rounding
from compress_onnx.pipeline.runtime.protobuf import SMALLER, serialized
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run

_OWN = "recovery."
LOSS = f"{_OWN}loss"


def target_of(value: str) -> str:
    """The input that takes the original's ``value``."""
    return f"{_OWN}target.{value}"


def weight_of(value: str) -> str:
    """The input ``[..., 1]`` that weighs the positions of ``value``."""
    return f"{_OWN}weight.{value}"


def share_of(value: str) -> str:
    """The input ``[B, T, 1]`` that pools the positions of ``value``."""
    return f"{_OWN}share.{value}"


def label_of(value: str) -> str:
    """The input ``[B, C]`` that weighs the logarithms of the classes' probabilities."""
    return f"{_OWN}label.{value}"


@dataclass(frozen=True)
class Compared:
    """A value that both models compute.

    Attributes:
        name: in the graph.
        rank: its number of axes.
        pooled: adds the term of its pooled positions.
        labelled: adds the term of the labels; its axes are samples and classes.
    """

    name: str
    rank: int
    pooled: bool
    labelled: bool = False


class Distillation:
    """Loss and gradients of a model, by ONNX Runtime.

    Args:
        model: the compressed model, with all its weights inside; unchanged.
        trained: the weights to differentiate by.
        compared: the values that the loss compares.
        spec: how both graphs are run.
        rounding: which layers are rounded.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        trained: Sequence[str],
        compared: Sequence[Compared],
        spec: SessionSpec | None = None,
        rounding: Rounding | None = None,
    ) -> None:
        proto = onnx.ModelProto()
        proto.CopyFrom(model)
        del proto.graph.value_info[:]
        self._rounded = RoundedGraph(prepared(proto), rounding or Rounding())
        proto = self._rounded.proto
        shapes = _make_inputs(proto.graph, trained)
        _write_on_rows(proto.graph, shapes)
        _append_loss(proto.graph, compared)
        self._adjoint = Adjoint(
            proto,
            trained,
            [LOSS],
            beside=[LOSS],
            advice="leave recovery out",
            spec=spec,
            finish=self._rounded.write_rounding,
        )
        forward = onnx.ModelProto()
        forward.CopyFrom(proto)
        self._rounded.write_rounding(forward)
        self._forward = open_session(serialized(forward, instead=SMALLER), spec)

    def served(self, weights: Mapping[str, Float32]) -> dict[str, Float32]:
        """Trained ``weights`` as they are fed and served: rounded, where they will be."""
        return self._rounded.rounded(weights)

    def loss(self, feeds: Mapping[str, Array]) -> float:
        """The loss at ``feeds``: the model's inputs, targets, weights, and :meth:`served` ones."""
        return float(run(self._forward, in_single(feeds), [LOSS])[LOSS])

    def gradient(self, feeds: Mapping[str, Array]) -> tuple[float, dict[str, Float32]]:
        """The loss, and its gradient by trained weight.

        Raises:
            NotDifferentiableError: an operator of the model has no gradient.
        """
        gradients, values = self._adjoint.run(feeds, {LOSS: np.ones((), np.float32)})
        return float(values[LOSS]), gradients


def _make_inputs(graph: onnx.GraphProto, trained: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Turn the initializers ``trained`` into inputs, in place; returns their shapes."""
    wanted = set(trained)
    shapes = {t.name: tuple(t.dims) for t in graph.initializer if t.name in wanted}
    kept = [tensor for tensor in graph.initializer if tensor.name not in wanted]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for name, shape in shapes.items():
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return shapes


def _write_on_rows(graph: onnx.GraphProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Flatten the left operand of every MatMul with a trained matrix, in place."""
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        shape = shapes.get(node.input[1]) if node.op_type == "MatMul" else None
        if shape is None or len(shape) != 2:
            nodes.append(node)
        else:
            nodes.extend(_on_rows(graph, node, shape))
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)


def _on_rows(
    graph: onnx.GraphProto, node: onnx.NodeProto, shape: tuple[int, ...]
) -> Iterator[onnx.NodeProto]:
    """``y = reshape(reshape(x, [-1, K])·w, [..., N])``."""
    (x, w), y = node.input, node.output[0]
    own = f"{_OWN}{y}."
    for name, numbers in (("rows", [-1, shape[0]]), ("columns", [shape[1]])):
        graph.initializer.append(numpy_helper.from_array(np.array(numbers, np.int64), own + name))
    yield helper.make_node("Reshape", [x, own + "rows"], [own + "x"])
    yield helper.make_node("MatMul", [own + "x", w], [own + "y"])
    yield helper.make_node("Shape", [x], [own + "leading"], end=-1)
    yield helper.make_node("Concat", [own + "leading", own + "columns"], [own + "shape"], axis=0)
    yield helper.make_node("Reshape", [own + "y", own + "shape"], [y])


def _append_loss(graph: onnx.GraphProto, compared: Sequence[Compared]) -> None:
    """Add the terms of the loss, their inputs, and their sum as an output, in place."""
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), f"{_OWN}positions"))
    terms = [term for value in compared for term in _terms(graph, value)]
    graph.node.append(helper.make_node("Sum", terms, [LOSS]))
    graph.output.append(helper.make_tensor_value_info(LOSS, TensorProto.FLOAT, []))


def _terms(graph: onnx.GraphProto, value: Compared) -> Iterator[str]:
    own = f"{_OWN}{value.name}."
    inputs = [target_of(value.name), weight_of(value.name)]
    inputs += [share_of(value.name)] if value.pooled else []
    inputs += [label_of(value.name)] if value.labelled else []
    for name in inputs:
        shape = [None] * value.rank
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    node = graph.node.append
    node(helper.make_node("Sub", [value.name, inputs[0]], [own + "difference"]))
    node(helper.make_node("Mul", [own + "difference", inputs[1]], [own + "weighted"]))
    node(helper.make_node("Mul", [own + "weighted", own + "difference"], [own + "squares"]))
    node(helper.make_node("ReduceSum", [own + "squares"], [own + "sum"], keepdims=0))
    yield own + "sum"
    if value.pooled:
        node(helper.make_node("Mul", [own + "difference", inputs[2]], [own + "shares"]))
        axes = f"{_OWN}positions"
        node(helper.make_node("ReduceSum", [own + "shares", axes], [own + "pooled"]))
        node(helper.make_node("Mul", [own + "pooled"] * 2, [own + "pooled.squares"]))
        node(
            helper.make_node(
                "ReduceSum", [own + "pooled.squares"], [own + "pooled.sum"], keepdims=0
            )
        )
        yield own + "pooled.sum"
    if value.labelled:
        node(helper.make_node("LogSoftmax", [value.name], [own + "logarithms"], axis=-1))
        labels = label_of(value.name)
        node(helper.make_node("Mul", [own + "logarithms", labels], [own + "likelihoods"]))
        node(helper.make_node("ReduceSum", [own + "likelihoods"], [own + "likelihood"], keepdims=0))
        node(helper.make_node("Neg", [own + "likelihood"], [own + "entropy"]))
        yield own + "entropy"
