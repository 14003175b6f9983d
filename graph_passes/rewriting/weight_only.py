"""Let layers keep their weights as integers of few bits, beside a low-rank residual in float.

With what :mod:`graph_passes.factorization.weight_only` made of a weight, a layer ``y = x·W + b``
becomes ::

    com.microsoft.MatMulNBits(x, Q, s)  (+ (x·A)·B)  (+ b + c)

with c the correction of the bias. Integers are unpacked while the product is computed: the file and
the memory are smaller, the inputs stay floats.

Rules:

1. Only float32 layers with a plain weight on the right take part; others have a reason
   (:func:`why_not_weight_only`).
2. Layers that share a weight share what stands for it.
3. The rewritten value keeps its name, type and shape.
4. New nodes carry :data:`~graph_passes.sites.linear_site.SITE_PROPERTY`, so that the factors of a
   residual are not factored again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization.weight_only import BLOCK, BlockWeight, WeightOnly
from compress_onnx.graph_passes.rewriting.initializers import (
    Initializers,
    Kept,
    in_memory,
    register,
)
from compress_onnx.graph_passes.rewriting.integers import CONTRIB, why_float
from compress_onnx.graph_passes.rewriting.replacement import corrected_bias
from compress_onnx.graph_passes.rewriting.told import told_of, with_numbers
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.graph_passes.sites.grouping import group_by_weight
from compress_onnx.graph_passes.sites.linear_site import SITE_PROPERTY, LinearSite
from compress_onnx.graph_passes.sites.naming import UniqueNames, value_names

INTEGER_PRODUCTS = 4
"""ONNX Runtime's accuracy level at which it rounds inputs too, by blocks of each row."""
FLOAT_PRODUCTS = 1


class WeightOnlyPass(ir.passes.InPlacePass):
    """Rewrite layers so that they keep integers.

    Args:
        rounded: what stands for each weight, by its key; the weights that take part.
        accuracy_level: how ONNX Runtime multiplies.
    """

    def __init__(
        self, rounded: Mapping[str, WeightOnly], accuracy_level: int = INTEGER_PRODUCTS
    ) -> None:
        super().__init__()
        self._rounded = rounded
        self._accuracy_level = accuracy_level

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every layer whose weight was rounded.

        Raises:
            RequestError: the model lacks a weight, a layer of it has to stay as it is, or a
                corrected bias does not fit into its type; nothing was changed then.
        """
        groups = group_by_weight(find_sites(model).sites)
        for key in self._rounded:
            if key not in groups:
                raise RequestError(f"the model lacks the weight {key}")
            for site in groups[key]:
                reason = why_not_weight_only(site)
                if reason is not None:
                    raise RequestError(f"{site.name} cannot keep integers: {reason}")
        initializers = Initializers(UniqueNames(value_names(model), separator="_"), in_memory)
        kept = [
            _Kept(groups[key], found, initializers, self._accuracy_level)
            for key, found in self._rounded.items()
        ]
        for weight in kept:
            weight.rewrite()
        if kept:
            model.opset_imports.setdefault(CONTRIB, 1)
        return ir.passes.PassResult(model, modified=bool(kept))


def why_not_weight_only(site: LinearSite) -> str | None:
    """Why ``site`` cannot keep integers; None where it can (rule 1)."""
    if site.alpha != 1 or site.beta != 1:
        return "its Gemm scales by alpha or beta"
    shape = site.input.shape
    if shape is not None and len(shape) < 2:
        return "its input is a vector"
    return why_float(site)


class _Kept:
    """A weight in its new form, and the layers that share it."""

    def __init__(
        self,
        sites: Sequence[LinearSite],
        found: WeightOnly,
        initializers: Initializers,
        accuracy_level: int,
    ) -> None:
        self._sites = sites
        self._owner = sites[0].weight.initializer
        self._base = found.base
        self._damage = found.damage
        self._initializers = initializers
        self._accuracy_level = accuracy_level
        scale = found.base.stored_scale
        self._scale = initializers.keep(  # [N, blocks]
            self._owner, "scale", found.base.scale.T, scale and scale.transposed()
        )
        self._factors: list[Kept] = []
        if (term := found.residual) is not None:
            down, up = term.packed or (None, None)
            self._factors = [
                initializers.keep(self._owner, "residual.down", term.down, down),
                initializers.keep(self._owner, "residual.up", term.up, up),
            ]
        self._biases: dict[str, Kept] = {}
        if found.bias is not None:
            self._biases = {
                site.name: initializers.keep(
                    self._owner, "rounded.bias", corrected_bias(site, found.bias)
                )
                for site in sites
            }

    def rewrite(self) -> None:
        """Put it into the graph."""
        decoding = {SITE_PROPERTY: self._sites[0].name}
        assert self._owner.graph is not None
        name = self._initializers.names(f"{self._owner.name}.integers")
        operands = [
            register(self._owner.graph, ir.tensor(_packed(self._base), name=name)),
            self._initializers.place(self._owner, self._scale, decoding),
        ]
        factors = [
            self._initializers.place(self._owner, factor, decoding) for factor in self._factors
        ]
        attributes = {
            "K": self._sites[0].in_features,
            "N": self._sites[0].out_features,
            "bits": self._base.bits,
            "block_size": BLOCK,
            "accuracy_level": self._accuracy_level,
        }
        for site in self._sites:
            kept = self._biases.get(site.name)
            bias = None if kept is None else self._initializers.place(self._owner, kept, decoding)
            told = with_numbers(told_of(site.node), f"{self._base.bits}-bit weights", self._damage)
            writer = _Writer(site, self._initializers.names, told)
            output = writer.node("MatMulNBits", [site.input, *operands], attributes, CONTRIB)
            if factors:
                hidden = writer.node("MatMul", [site.input, factors[0]])
                output = writer.node("Add", [output, writer.node("MatMul", [hidden, factors[1]])])
            writer.replace(output, bias)


class _Writer:
    """Writes the nodes that one layer becomes."""

    def __init__(self, site: LinearSite, names: UniqueNames, told: Mapping[str, str]) -> None:
        self._site = site
        self._told = told
        self._names = names
        self._nodes: list[ir.Node] = []

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: Mapping[str, int] | None = None,
        domain: str = "",
    ) -> ir.Value:
        """A new node behind those that there are."""
        name = self._names(f"{self._site.node.name}.{op_type}")
        node = ir.Node(
            domain,
            op_type,
            inputs,
            ir.convenience.convert_attributes(dict(attributes or {})),
            outputs=[ir.Value(name=self._names(f"{name}.output"))],
            name=name,
            metadata_props={SITE_PROPERTY: self._site.name, **self._told},
        )
        self._nodes.append(node)
        return node.outputs[0]

    def replace(self, output: ir.Value, bias: ir.Value | None) -> None:
        """Put the nodes in the place of the layer, and ``bias`` in that of its bias."""
        site, node = self._site, self._site.node
        assert node.graph is not None
        behind = site.bias is not None and site.bias.node is not node
        if len(node.inputs) > 2 and node.inputs[2] is not None and (site.bias is None or not bias):
            output = self.node("Add", [output, node.inputs[2]])
        if bias is not None and not behind:
            output = self.node("Add", [output, bias])
        old = node.outputs[0]
        output.type, output.shape = old.type, old.shape
        ir.convenience.replace_nodes_and_values(
            node.graph, node, [node], self._nodes, [old], [output]
        )
        if bias is not None and behind:
            assert site.bias is not None
            site.bias.node.replace_input_with(site.bias.index, bias)


def _packed(base: BlockWeight) -> Array:
    """``[N, blocks, BLOCK·bits/8]`` the integers, two of 4 bits in a byte, the first one lower."""
    blocks, columns = base.scale.shape
    padded = np.full((blocks * BLOCK, columns), base.zero_point, np.uint8)
    padded[: len(base.numbers)] = base.numbers
    cut = np.ascontiguousarray(padded.T).reshape(columns, blocks, BLOCK)
    if base.bits == 8:
        return cut
    packed: Array = cut[..., ::2] | (cut[..., 1::2] << 4)
    return packed
