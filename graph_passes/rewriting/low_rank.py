"""Replace linear sites by chains of low-rank factors.

With W ≈ Σ_i down_i·up_i and a bias correction c::

    MatMul:  x·W (+ b)              ->  Σ_i (x·down_i)·up_i (+ b + c)
    Gemm:    alpha·x·W + beta·C     ->  Σ_i alpha·(x·down_i)·up_i + (beta·C + alpha·c)

and the transpose of all that where the weight is on the left: ``up_iᵀ·(down_iᵀ·x)``.

Rules:

1. Only standard operators are emitted: MatMul, Gemm where a Gemm was, Add; and Cast and Mul for
   factors that the file holds in a smaller type (:mod:`graph_passes.rewriting.initializers`).
2. A bias is never edited in place (exporters merge equal ones): the site gets an initializer of its
   own. Where there is no bias to replace, the correction becomes an Add; a stack of matrices
   without a bias is left without one
   (:attr:`~graph_passes.sites.linear_site.LinearSite.corrected_bias`).
3. Sites that share a weight share its factors.
4. The rewritten value keeps its name, type and shape; new ones are ``<weight>.lowrank.down`` and
   the like, after checking that the name is free, and their shapes are recorded where known.
5. Numbers are computed for the whole plan before the graph changes
   (:mod:`graph_passes.rewriting.replacement`).
6. Each new node carries the site, and what :mod:`graph_passes.rewriting.told` lists, in its
   ``metadata_props``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from compress_onnx.graph_passes.factorization import ActivationStats, Factorization
from compress_onnx.graph_passes.planning.bound import PlanErrors
from compress_onnx.graph_passes.planning.decompositions import Decompositions
from compress_onnx.graph_passes.planning.factoring import FactoredWeight, factor_weights
from compress_onnx.graph_passes.planning.plan import CompressionPlan
from compress_onnx.graph_passes.rewriting.initializers import (
    INT4_IR_VERSION,
    Initializers,
    Sink,
    in_memory,
)
from compress_onnx.graph_passes.rewriting.replacement import Replacement, prepare
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.graph_passes.sites.linear_site import SITE_PROPERTY, LinearSite, factored_names
from compress_onnx.graph_passes.sites.naming import NAME_SCOPES, UniqueNames, value_names

Factors = Sequence[tuple[ir.Value, ir.Value]]

DOWN, UP = ".lowrank.down", ".lowrank.up"
"""What the names of a chain's nodes have behind that of the node whose place they take."""


class LowRankPass(ir.passes.InPlacePass):
    """Apply a :class:`CompressionPlan`; on a model that it was applied to already, do nothing.

    Args:
        plan: what to do.
        stats: activation statistics by matrix name, for the methods that need them.
        progress: called with the number of weights done, after each.
        ready: factorizations by weight key that need not be computed any more.
        sink: where the new weights go; a model that does not fit into memory needs another place.
        decompositions: those that there are already, in place of ``stats``.
        unseen: what samples that nothing was made from tell about the weights.
        elsewhere: weights that another pass rewrites, whose errors belong to the plan.

    Attributes:
        plan: after the call, the plan with the errors that the factors really have.
    """

    def __init__(
        self,
        plan: CompressionPlan,
        stats: Mapping[str, ActivationStats] | None = None,
        *,
        progress: Callable[[int], None] | None = None,
        ready: Mapping[str, Factorization] | None = None,
        sink: Sink = in_memory,
        decompositions: Decompositions | None = None,
        unseen: Decompositions | None = None,
        elsewhere: Sequence[FactoredWeight] = (),
    ) -> None:
        super().__init__()
        self.plan = plan
        self._decompositions = decompositions or Decompositions(stats)
        self._unseen = unseen
        self._progress = progress
        self._ready = ready
        self._sink = sink
        self._elsewhere = elsewhere

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every factored site of the plan.

        Raises:
            RequestError: the plan does not fit the model, or what comes out does not fit into its
                types; nothing was changed then. (Not checked in ``requires``, which would hide the
                error behind one of its own.)
        """
        factored = {site.site for site in self.plan.factored}
        if factored and factored <= factored_names(model):
            return ir.passes.PassResult(model, modified=False)
        initializers = Initializers(UniqueNames(value_names(model), separator="_"), self._sink)
        replacements, plan = self._prepare(model, initializers)
        for replacement in replacements:
            _rewrite(replacement, initializers)
        if any(site.store == "int4" for site in plan.factored):
            model.ir_version = max(model.ir_version, INT4_IR_VERSION)
        self.plan = plan
        return ir.passes.PassResult(model, modified=bool(replacements))

    def _prepare(
        self, model: ir.Model, initializers: Initializers
    ) -> tuple[list[Replacement], CompressionPlan]:
        """What will stand for each weight, and the plan with its errors; changes no graph."""
        table = find_sites(model)
        errors = PlanErrors(table, self.plan, self._decompositions, self._unseen)
        for measured in self._elsewhere:
            errors.add(measured)
        replacements: list[Replacement] = []
        for factored in factor_weights(table, self.plan, self._decompositions, self._ready):
            replacements.append(prepare(factored, initializers))
            errors.add(factored)
            if self._progress is not None:
                self._progress(len(replacements))
        return replacements, errors.result()


def _rewrite(replacement: Replacement, initializers: Initializers) -> None:
    """Put ``replacement`` into the graph, in the place of its weight."""
    first = replacement.sites[0]
    weight, properties = first.weight.initializer, replacement.properties
    decoding = {SITE_PROPERTY: first.name, **properties}
    factors = [
        (initializers.place(weight, down, decoding), initializers.place(weight, up, decoding))
        for down, up in replacement.factors
    ]
    for site in replacement.sites:
        kept = replacement.biases.get(site.name)
        bias = None if kept is None else initializers.place(weight, kept, decoding)
        _SiteRewriter(site, initializers, properties).rewrite(factors, bias)


class _SiteRewriter:
    """Builds the nodes that replace one site."""

    def __init__(
        self, site: LinearSite, initializers: Initializers, properties: Mapping[str, str]
    ) -> None:
        self._site = site
        self._initializers = initializers
        self._nodes: list[ir.Node] = []
        self._properties = {SITE_PROPERTY: site.name, **properties}
        if NAME_SCOPES in site.node.metadata_props:
            self._properties[NAME_SCOPES] = site.node.metadata_props[NAME_SCOPES]

    def rewrite(self, factors: Factors, bias: ir.Value | None) -> None:
        """Replace the site by its ``factors``, and its bias, where it is corrected, by ``bias``."""
        site, node = self._site, self._site.node
        output = self._chain(*factors[-1], self._gemm_addend(bias))
        for down, up in factors[:-1]:
            output = self._node("Add", ".lowrank.sum", [output, self._chain(down, up, None)])
        if bias is not None and site.bias is None:
            output = self._node("Add", ".lowrank.bias", [output, bias])
        assert node.graph is not None
        ir.convenience.replace_nodes_and_values(
            node.graph, node, [node], self._nodes, [node.outputs[0]], [output]
        )
        if bias is not None and site.bias is not None and site.bias.node is not node:
            site.bias.node.replace_input_with(site.bias.index, bias)

    def _gemm_addend(self, bias: ir.Value | None) -> ir.Value | None:
        """What the last Gemm of the chain adds; a corrected bias has beta folded in."""
        site = self._site
        if site.node.op_type != "Gemm" or len(site.node.inputs) < 3:
            return None
        return site.node.inputs[2] if bias is None or site.bias is None else bias

    def _chain(self, down: ir.Value, up: ir.Value, addend: ir.Value | None) -> ir.Value:
        site = self._site
        # MatMul reads the features of x on the last axis, or on the second-last of a right operand.
        if site.transpose_input == site.on_left:
            hidden = self._node("MatMul", DOWN, self._operands(site.input, down))
        else:
            transpose = {"transB" if site.on_left else "transA": 1}
            hidden = self._node("Gemm", DOWN, self._operands(site.input, down), transpose)
        hidden.type, hidden.shape = site.node.outputs[0].type, self._hidden_shape(down)
        operands = self._operands(hidden, up)
        if site.node.op_type == "MatMul":
            return self._node("MatMul", UP, operands)
        if addend is None:
            return self._node("Gemm", UP, operands, {"alpha": site.alpha})
        beta = site.beta if addend is site.node.inputs[2] else 1.0
        return self._node("Gemm", UP, [*operands, addend], {"alpha": site.alpha, "beta": beta})

    def _operands(self, x: ir.Value, factor: ir.Value) -> list[ir.Value]:
        return [factor, x] if self._site.on_left else [x, factor]

    def _hidden_shape(self, down: ir.Value) -> ir.Shape | None:
        """The site's output shape with the rank in place of N."""
        shape = self._site.node.outputs[0].shape
        assert down.shape is not None
        if shape is None:
            return None
        sizes = list(shape)
        axis = -2 if self._site.on_left else -1
        sizes[axis] = down.shape[axis]
        return ir.Shape(sizes)

    def _node(
        self,
        op_type: str,
        suffix: str,
        inputs: Sequence[ir.Value],
        attributes: Mapping[str, int | float] | None = None,
    ) -> ir.Value:
        replaced = self._site.node.outputs[0]
        output = ir.Value(
            name=self._initializers.names(f"{replaced.name}{suffix}"),
            shape=replaced.shape.copy() if replaced.shape is not None else None,
            type=replaced.type,
        )
        self._nodes.append(
            ir.Node(
                "",
                op_type,
                inputs,
                ir.convenience.convert_attributes(dict(attributes or {})),
                outputs=[output],
                name=self._initializers.names(f"{self._site.node.name}{suffix}"),
                metadata_props=dict(self._properties),
            )
        )
        return output
