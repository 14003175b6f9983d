"""What a linear site is: a node that multiplies an input by a weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from compress_onnx.graph_passes.sites.weights import Weight

SITE_PROPERTY = "compress_onnx.site"
"""Metadata that marks a node as a low-rank factor, so that it is not factored again."""

NEURONS_PROPERTY = "compress_onnx.neurons"
"""Metadata of a node with new numbers for the neurons that stay: its role in the network, ``up``,
``between``, ``down`` or ``bias``."""

SIBLINGS_PROPERTY = "compress_onnx.siblings"
"""Metadata of a node that several sites were joined into, while they are (JSON)."""


def factored_names(model: ir.Model) -> set[str]:
    """The names of the sites of ``model`` that are low-rank factors already."""
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return {n.metadata_props[SITE_PROPERTY] for n in nodes if SITE_PROPERTY in n.metadata_props}


def unmark_factors(model: ir.Model) -> None:
    """Let the low-rank factors of ``model`` count as layers of their own."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.metadata_props.pop(SITE_PROPERTY, None)


@dataclass(frozen=True)
class Bias:
    """The initializer ``value`` that ``node`` (an Add, or the Gemm itself) adds at ``index``."""

    value: ir.Value
    node: ir.Node
    index: int


@dataclass(frozen=True)
class LinearSite:
    """A linear layer in the graph: ``y = alpha·x·W + beta·b``, W of shape [K, N].

    Where the node has its weight on the left, it computes ``yᵀ = alpha·Wᵀ·xᵀ + beta·bᵀ``. Where the
    weight is a stack of matrices, each is multiplied with its own part of x, and has its own b.

    Attributes:
        name: module path, unique in the model.
        group: ``attention``, ``mlp`` or ``other``.
        node: the MatMul or Gemm.
        weight: W, whichever way round it is stored.
        bias: where a bias correction can go; None where there is none to edit.
        on_left: the weight is the node's first operand.
        transpose_input: the K features are on the second-last axis of the node's input, not on the
            last (weight on the left, or Gemm with transA).
        alpha, beta: Gemm's factors; 1 for MatMul.
        nested: the node is inside the body of an If, Loop or Scan.
        siblings: the sites that were joined into this one, with the names of their nodes.
    """

    name: str
    group: str
    node: ir.Node
    weight: Weight
    bias: Bias | None
    on_left: bool = False
    transpose_input: bool = False
    alpha: float = 1.0
    beta: float = 1.0
    nested: bool = False
    siblings: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def input(self) -> ir.Value:
        """The value x (or xᵀ)."""
        value = self.node.inputs[1 if self.on_left else 0]
        assert value is not None
        return value

    @property
    def weight_index(self) -> int:
        """Which operand of the node is the weight."""
        return 0 if self.on_left else 1

    @property
    def matrices(self) -> Mapping[str, tuple[int, ...]]:
        """The place of each matrix in the stack, by the name that its statistics go by.

        That is the site's own name for a plain matrix, ``name[0]``, ``name[1]`` … for a stack.
        """
        if not self.weight.stacked:
            return {self.name: ()}
        places = np.ndindex(*self.weight.leading)
        return {f"{self.name}[{','.join(map(str, place))}]": place for place in places}

    @property
    def corrected_bias(self) -> int:
        """How many numbers a corrected bias has; 0 where the bias must not be corrected.

        A stack without a bias gets none: where its rows are routed, zeros that stand for tokens
        that went elsewhere may have to come out as zeros.
        """
        if self.weight.stacked and self.bias is None:
            return 0
        return self.weight.matrices * self.out_features

    @property
    def in_features(self) -> int:
        """K."""
        return self.weight.shape[0]

    @property
    def out_features(self) -> int:
        """N."""
        return self.weight.shape[1]
