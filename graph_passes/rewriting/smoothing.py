"""Divide inputs of layers, and multiply their weights: ``x·W = (x / d)·(d ∘ W)``.

:mod:`graph_passes.factorization.smoothing` chooses d.

Rules:

1. All layers that read one value in one graph are divided alike.
2. Where nothing else reads the value, the division goes into the constants that make it, if there
   are such (:mod:`graph_passes.rewriting.folding`). Else one Mul stands in front of the layers.
3. A weight that layers of other inputs read as well stays, and so do its layers; so do stacks, and
   layers with their weight on the left.
4. No initializer is edited in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from compress_onnx.graph_passes.arrays import Array, Float64
from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.rewriting.folding import Operand, operands
from compress_onnx.graph_passes.rewriting.initializers import Initializers, Sink, in_memory
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.graph_passes.sites.naming import UniqueNames, value_names
from compress_onnx.graph_passes.sites.weights import Weight, read, resolve

_ROLE = "smoothed"

Readers = Sequence[LinearSite]


def shared_inputs(sites: Readers) -> list[list[LinearSite]]:
    """``sites`` by the value that they read, those left out that rule 3 keeps as they are."""
    groups: dict[tuple[ir.Value, ir.Graph | None], list[LinearSite]] = {}
    owners: dict[ir.Value, set[ir.Value]] = {}
    for site in sites:
        if site.on_left or site.transpose_input or site.weight.stacked:
            continue
        owners.setdefault(site.weight.initializer, set()).add(site.input)
        groups.setdefault((site.input, _graph_of(site)), []).append(site)
    return [
        group
        for group in groups.values()
        if all(len(owners[site.weight.initializer]) == 1 for site in group)
    ]


class SmoothingPass(ir.passes.InPlacePass):
    """Divide inputs.

    Args:
        divisors: by the name of one of the layers that read a value, ``[K]``.
        sink: where the new weights go.
    """

    def __init__(self, divisors: Mapping[str, Float64], *, sink: Sink = in_memory) -> None:
        super().__init__()
        self._divisors = divisors
        self._sink = sink

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Divide every value that has a divisor.

        Raises:
            RequestError: no layer goes by such a name, or its value has another size; nothing was
                changed then.
        """
        groups = {
            site.name: group for group in shared_inputs(find_sites(model).sites) for site in group
        }
        for name, divisor in self._divisors.items():
            if name not in groups:
                raise RequestError(f"the inputs of {name!r} cannot be divided: no such layer")
            if divisor.shape != (groups[name][0].in_features,):
                raise RequestError(
                    f"{name} reads {groups[name][0].in_features} inputs, not {divisor.size}"
                )
        initializers = Initializers(UniqueNames(value_names(model), separator="_"), self._sink)
        for name, divisor in self._divisors.items():
            _divide(groups[name], divisor, initializers)
        return ir.passes.PassResult(model, modified=bool(self._divisors))


def folds(group: Readers) -> bool:
    """Whether the input of ``group``, one of :func:`shared_inputs`, is divided without a node."""
    return bool(_makers(group))


def _makers(group: Readers) -> list[Operand]:
    """The constants that make the value which ``group`` reads, and nothing else."""
    return operands(group[0].input, {(site.node, 0) for site in group}, group[0].in_features)


def _divide(group: Readers, divisor: Float64, initializers: Initializers) -> None:
    """Divide the value that ``group`` reads."""
    makers = _makers(group)
    made: dict[tuple[ir.Value | None, bool], ir.Value] = {}
    for site in group:
        transposed = bool(site.node.attributes.get_int("transB", 0))
        key = site.node.inputs[site.weight_index], transposed
        if key not in made:
            rows = divisor if transposed else divisor[:, None]
            made[key] = _multiplied(key[0], rows, initializers)
        site.node.replace_input_with(site.weight_index, made[key])
    for maker in makers:
        factor = 1 / maker.divisor(divisor)
        new = _multiplied(maker.node.inputs[maker.index], factor, initializers)
        maker.node.replace_input_with(maker.index, new)
    if not makers:
        _multiply(group, divisor, initializers)


def _multiplied(constant: ir.Value | None, factor: Float64, initializers: Initializers) -> ir.Value:
    """``constant``, a vector or what stands for a weight, with other numbers.

    The numbers are those that the graph has now: those of a weight change twice where its inputs
    and its outputs are divided.
    """
    assert constant is not None
    weight = resolve(constant)
    if isinstance(weight, Weight):
        return _placed(weight.initializer, factor * weight.array().astype(np.float64), initializers)
    assert constant.const_value is not None
    numbers = read(constant.const_value).astype(np.float64)
    return _placed(constant, factor * numbers, initializers)


def _multiply(group: Readers, divisor: Float64, initializers: Initializers) -> None:
    """Rule 2, without such constants: one Mul in front of the layers."""
    value, owner = group[0].input, group[0].weight.initializer
    factor = _placed(owner, 1 / divisor, initializers)
    graph = _graph_of(group[0])
    assert graph is not None
    output = ir.Value(
        name=initializers.names(f"{value.name}.{_ROLE}"),
        shape=None if value.shape is None else value.shape.copy(),
        type=value.type,
    )
    node = ir.Node("", "Mul", [value, factor], outputs=[output], name=f"{output.name}.node")
    readers = {site.node for site in group}
    graph.insert_before(next(other for other in graph if other in readers), node)
    for site in group:
        site.node.replace_input_with(1 if site.on_left else 0, output)


def _placed(owner: ir.Value, numbers: Array, initializers: Initializers) -> ir.Value:
    assert owner.const_value is not None
    exact = numbers.astype(owner.const_value.dtype.numpy())
    return initializers.place(owner, initializers.keep(owner, _ROLE, exact), {})


def _graph_of(site: LinearSite) -> ir.Graph | None:
    graph = site.node.graph
    return graph if isinstance(graph, ir.Graph) else None
