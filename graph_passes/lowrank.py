"""Replace linear sites by chains of low-rank factors.

With W ≈ Σ_i down_i·up_i and a bias correction c::

    MatMul:  x·W (+ b)              ->  Σ_i (x·down_i)·up_i (+ b + c)
    Gemm:    alpha·x·W + beta·C     ->  Σ_i alpha·(x·down_i)·up_i + (beta·C + alpha·c)

Rules:

1. Only standard operators are emitted: MatMul, Gemm where a Gemm was, Add.
2. A bias is never edited in place (exporters merge equal ones): the site gets an initializer of its
   own. Where there is no bias to replace, the correction becomes an Add.
3. Sites that share a weight share its factors.
4. The rewritten value keeps its name; new ones are ``<weight>.lowrank.down`` and the like, after
   checking that the name is free.
5. Each new node carries the site, method, rank and error in its ``metadata_props``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graph_passes.factoring import FactoredWeight, check_fits, factor_weights, with_errors
from graph_passes.factorization import ActivationStats
from graph_passes.naming import NAME_SCOPES, UniqueNames
from graph_passes.plan import CompressionPlan, SiteError
from graph_passes.sites import SITE_PROPERTY, LinearSite, find_sites

Factors = Sequence[tuple[ir.Value, ir.Value]]


class LowRankPass(ir.passes.InPlacePass):
    """Apply a :class:`CompressionPlan`.

    Args:
        plan: what to do.
        stats: activation statistics by site name, for the methods that need them.
        progress: called with the number of weights done, after each.

    Attributes:
        plan: after the call, the plan with the error that each factorization really has.
    """

    def __init__(
        self,
        plan: CompressionPlan,
        stats: Mapping[str, ActivationStats] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__()
        self.plan = plan
        self._stats = stats or {}
        self._progress = progress

    def requires(self, model: ir.Model) -> None:
        """The plan must fit the model.

        Raises:
            RequestError: it does not.
        """
        check_fits(find_sites(model), self.plan)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every factored site of the plan."""
        names = UniqueNames(_value_names(model), separator="_")
        errors: dict[str, SiteError] = {}
        weights = factor_weights(find_sites(model), self.plan, self._stats)
        for done, factored in enumerate(weights, start=1):
            _rewrite(factored, names)
            errors[factored.plan.weight] = factored.error
            if self._progress is not None:
                self._progress(done)
        self.plan = with_errors(self.plan, errors)
        return ir.passes.PassResult(model, modified=bool(errors))


def _rewrite(factored: FactoredWeight, names: UniqueNames) -> None:
    weight = factored.sites[0].weight.initializer
    factors = [
        (_initializer(weight, "down", term.down, names), _initializer(weight, "up", term.up, names))
        for term in factored.factorization.terms
    ]
    assert factored.plan.method is not None
    properties = {
        "compress_onnx.method": factored.plan.method.name,
        "compress_onnx.rank": str(factored.plan.rank),
        "compress_onnx.error": f"{factored.error.reached:.6g}",
    }
    for site in factored.sites:
        _SiteRewriter(site, names, properties).rewrite(factors, factored.factorization.bias)


def _initializer(
    owner: ir.Value, role: str, array: NDArray[np.generic], names: UniqueNames
) -> ir.Value:
    """A new initializer beside ``owner``, in the same graph, of the same type."""
    assert owner.graph is not None
    assert owner.const_value is not None
    name = names(f"{owner.name}.lowrank.{role}")
    tensor = ir.Tensor(np.ascontiguousarray(array), dtype=owner.const_value.dtype, name=name)
    value = ir.Value(
        name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    owner.graph.register_initializer(value)
    return value


class _SiteRewriter:
    """Builds the nodes that replace one site."""

    def __init__(self, site: LinearSite, names: UniqueNames, properties: Mapping[str, str]) -> None:
        self._site = site
        self._names = names
        self._nodes: list[ir.Node] = []
        self._properties = {SITE_PROPERTY: site.name, **properties}
        if NAME_SCOPES in site.node.metadata_props:
            self._properties[NAME_SCOPES] = site.node.metadata_props[NAME_SCOPES]

    def rewrite(self, factors: Factors, correction: NDArray[np.float64] | None) -> None:
        site, node = self._site, self._site.node
        correction = None if correction is None else site.alpha * correction
        addend = self._gemm_addend(correction)
        output = self._chain(*factors[-1], addend)
        for down, up in factors[:-1]:
            output = self._node("Add", "sum", [output, self._chain(down, up, None)])
        if correction is not None and site.bias is None:
            bias = _initializer(
                site.weight.initializer, "bias", self._stored(correction), self._names
            )
            output = self._node("Add", "bias", [output, bias])
        assert node.graph is not None
        ir.convenience.replace_nodes_and_values(
            node.graph, node, [node], self._nodes, [node.outputs[0]], [output]
        )
        if correction is not None and site.bias is not None and site.bias.node is not node:
            corrected = _initializer(
                site.weight.initializer,
                "bias",
                self._stored(self._old_bias() + correction),
                self._names,
            )
            site.bias.node.replace_input_with(site.bias.index, corrected)

    def _gemm_addend(self, correction: NDArray[np.float64] | None) -> ir.Value | None:
        """What the last Gemm of the chain adds; a corrected bias has beta folded in."""
        site = self._site
        if site.node.op_type != "Gemm" or len(site.node.inputs) < 3:
            return None
        if correction is None or site.bias is None:
            return site.node.inputs[2]
        bias = self._stored(site.beta * self._old_bias() + correction)
        return _initializer(site.weight.initializer, "bias", bias, self._names)

    def _chain(self, down: ir.Value, up: ir.Value, addend: ir.Value | None) -> ir.Value:
        site = self._site
        if site.transpose_input:
            hidden = self._node("Gemm", "down", [site.input, down], {"transA": 1})
        else:
            hidden = self._node("MatMul", "down", [site.input, down])
        if site.node.op_type == "MatMul":
            return self._node("MatMul", "up", [hidden, up])
        if addend is None:
            return self._node("Gemm", "up", [hidden, up], {"alpha": site.alpha})
        beta = site.beta if addend is site.node.inputs[2] else 1.0
        attributes = {"alpha": site.alpha, "beta": beta}
        return self._node("Gemm", "up", [hidden, up, addend], attributes)

    def _node(
        self,
        op_type: str,
        role: str,
        inputs: Sequence[ir.Value],
        attributes: Mapping[str, int | float] | None = None,
    ) -> ir.Value:
        output = ir.Value(name=self._names(f"{self._site.node.outputs[0].name}.lowrank.{role}"))
        self._nodes.append(
            ir.Node(
                "",
                op_type,
                inputs,
                ir.convenience.convert_attributes(dict(attributes or {})),
                outputs=[output],
                name=self._names(f"{self._site.node.name}.lowrank.{role}"),
                metadata_props=dict(self._properties),
            )
        )
        return output

    def _old_bias(self) -> NDArray[np.float64]:
        assert self._site.bias is not None
        assert self._site.bias.value.const_value is not None
        old = self._site.bias.value.const_value.numpy().astype(np.float64)
        return np.broadcast_to(old.reshape(-1), (self._site.out_features,))

    def _stored(self, bias: NDArray[np.float64]) -> NDArray[np.generic]:
        return bias.astype(self._site.weight.array().dtype)


def _value_names(model: ir.Model) -> set[str]:
    taken: set[str] = set()
    for graph in model.graphs():
        taken.update(value.name for value in graph.inputs if value.name)
        taken.update(graph.initializers)
        for node in graph:
            taken.update(value.name for value in node.outputs if value.name)
            taken.add(node.name or "")
    return taken
