"""Divide inputs of layers, and multiply their weights: ``x·W = (x / d)·(d ∘ W)``.

:mod:`graph_passes.factorization.smoothing` chooses d.

Rules:

1. All layers that read one value in one graph are divided alike.
2. Where nothing else reads the value, the division goes into what makes it, and no node is added:
   a scale (and shift) for each input, such as a norm's, or the columns of a weight, such as the
   first factor of a low-rank chain. Else one Mul stands in front of the layers.
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
from compress_onnx.graph_passes.rewriting.initializers import Initializers, Sink, in_memory
from compress_onnx.graph_passes.rewriting.neurons import as_read
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.graph_passes.sites.naming import UniqueNames, value_names
from compress_onnx.graph_passes.sites.weights import STANDARD_DOMAINS, read

_ROLE = "smoothed"
_NORMS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})

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


def _divide(group: Readers, divisor: Float64, initializers: Initializers) -> None:
    """Divide the value that ``group`` reads."""
    value = group[0].input
    made: dict[ir.Value, ir.Value] = {}
    for site in group:
        owner = site.weight.initializer
        if owner not in made:
            weight = divisor[:, None] * site.weight.array().astype(np.float64)
            made[owner] = _placed(owner, as_read(site, weight), initializers)
        site.node.replace_input_with(site.weight_index, made[owner])
    constants = _constants(value, {site.node for site in group}, divisor.size)
    if constants:
        for node, index in constants:
            old = node.inputs[index]
            assert old is not None
            assert old.const_value is not None
            new = _placed(old, read(old.const_value).astype(np.float64) / divisor, initializers)
            node.replace_input_with(index, new)
        return
    _multiply(group, divisor, initializers)


def _multiply(group: Readers, divisor: Float64, initializers: Initializers) -> None:
    """Rule 2, without a norm: one Mul in front of the layers."""
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


def _constants(value: ir.Value, readers: set[ir.Node], size: int) -> list[tuple[ir.Node, int]]:
    """The operands that make ``value``, of ``size`` inputs, if only ``readers`` read it."""
    node = value.producer()
    if node is None or value.is_graph_output() or any(n not in readers for n, _ in value.uses()):
        return []
    if node.op_type in _NORMS and len(node.inputs) > 1:
        operands = [
            index for index in (1, 2) if node.inputs[index : index + 1] not in ((), (None,))
        ]
        axis = node.attributes.get_int("axis", -1)
        whole = axis == -1 or (value.shape is not None and axis == len(value.shape) - 1)
        constant = all(_is_vector(node.inputs[index], size) for index in operands)
        return [(node, index) for index in operands] if whole and constant else []
    if node.domain in STANDARD_DOMAINS and node.op_type == "MatMul":
        return [(node, 1)] if _columns(node.inputs[1]) == size else []
    if node.domain in STANDARD_DOMAINS and node.op_type in {"Add", "Mul"}:
        return _affine(node, size)
    return []


def _affine(node: ir.Node, size: int) -> list[tuple[ir.Node, int]]:
    """The same for what scales, or shifts what is scaled before."""
    for index in (0, 1):
        other = node.inputs[1 - index]
        if _is_vector(node.inputs[index], size) and other is not None:
            if node.op_type == "Mul":
                return [(node, index)]
            before = _constants(other, {node}, size)
            return [(node, index), *before] if before else []
    return []


def _is_vector(value: ir.Value | None, size: int) -> bool:
    """Whether ``value`` is a constant with a number for each of ``size`` inputs."""
    if value is None or value.const_value is None:
        return False
    shape = value.const_value.shape.numpy()
    return bool(shape) and shape[-1] == size and int(np.prod(shape)) == shape[-1]


def _columns(value: ir.Value | None) -> int | None:
    """Of a constant matrix."""
    if value is None or value.const_value is None or len(value.const_value.shape) != 2:
        return None
    return int(value.const_value.shape.numpy()[1])


def _placed(owner: ir.Value, numbers: Array, initializers: Initializers) -> ir.Value:
    assert owner.const_value is not None
    exact = numbers.astype(owner.const_value.dtype.numpy())
    return initializers.place(owner, initializers.keep(owner, _ROLE, exact), {})


def _graph_of(site: LinearSite) -> ir.Graph | None:
    graph = site.node.graph
    return graph if isinstance(graph, ir.Graph) else None
