"""Training through rounding: layers that will be rounded compute in training what they will.

A layer ``y = x·W`` is going to be served as ``x̂·Ŵ`` (:mod:`graph_passes.factorization.rounding`)::

    x̂ = s·(q − z)      q = clip(rint(x/s) + z, 0, 255)
    Ŵ = Q·diag(t)      Q = rint(W·diag(t)⁻¹),  t_n = max_k |W_kn| / limit

Rounding has no useful gradient. The straight-through estimator takes that of what it rounds::

    ∂x̂/∂x = 1 where s·(0 − z) ≤ x ≤ s·(255 − z), else 0         ∂Ŵ/∂W = 1

Weights are rounded outside of the graph, which is fed Ŵ: the gradient by Ŵ is the one by W. Inputs
are clipped to their range in the graph that is differentiated, which gives the derivative above.
In the graph that runs, forwards and back, a QuantizeLinear and a DequantizeLinear stand in the
place of each Clip, so that every gradient is taken at the values that will be served.

Scales of inputs stay what calibration found; those of columns follow their weights.

A layer whose weight alone is rounded computes ``x·Ŵ`` with ``Ŵ = s·(Q − z)`` in blocks of rows
(:mod:`graph_passes.factorization.weight_only`). The estimator is the same. Its scales s stay as
they are, so that a weight which starts at Ŵ starts with the integers that were found for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from compress_onnx.graph_passes.arrays import Array, Float32
from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization.rounding import LIMIT, InputScale
from compress_onnx.graph_passes.factorization.weight_only import Bits, round_with
from compress_onnx.graph_passes.rewriting.initializers import register
from compress_onnx.graph_passes.rewriting.trainable import array_of, set_array
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.graph_passes.sites.naming import UniqueNames, value_names
from compress_onnx.graph_passes.sites.weights import readers

_LARGEST = 255


@dataclass(frozen=True, eq=False)
class Blocks:
    """How a weight [K, N] is rounded in blocks.

    Attributes:
        scale: ``[blocks, N]``.
        bits: of an integer.
    """

    scale: Float32
    bits: Bits

    def __repr__(self) -> str:
        return f"{self.bits} bits, scales {hashlib.sha256(self.scale.tobytes()).hexdigest()}"


@dataclass(frozen=True)
class Rounding:
    """How a model is going to be rounded.

    Attributes:
        scales: of the inputs, by the name of the value that the product computes; those of the
            layers that will multiply integers.
        limit: the largest integer of a weight of theirs.
        blocks: of the weights, by the same name; those of the layers whose weight alone is rounded.
    """

    scales: Mapping[str, InputScale] = field(default_factory=dict)
    limit: int = LIMIT
    blocks: Mapping[str, Blocks] = field(default_factory=dict)

    def sites(self, model: ir.Model) -> list[LinearSite]:
        """The layers of ``model`` that will be rounded.

        Raises:
            RequestError: the model lacks one of them, or one that stays in float shares its weight.
        """
        computed = {site.node.outputs[0].name: site for site in find_sites(model).sites}
        names = [*self.scales, *self.blocks]
        missing = [name for name in names if name not in computed]
        if missing:
            raise RequestError(f"the model has no layer that computes {missing[0]!r}")
        sites = [computed[name] for name in names]
        rounded = {site.node for site in sites}
        for site in sites:
            if not {node for node, _ in readers(site.weight.initializer)} <= rounded:
                raise RequestError(
                    f"{site.name} shares its weight with a layer that stays in float: recovery "
                    "cannot round it for one of them alone"
                )
        return sites

    def weights(self, model: ir.Model) -> list[ir.Value]:
        """The weights of ``model`` that are rounded, each once."""
        return list(dict.fromkeys(site.weight.initializer for site in self.sites(model)))


class RoundedGraph:
    """A graph to differentiate, and what makes one to run of it.

    Args:
        proto: the model, with its weights inside, in opset 11 or later; unchanged.
        rounding: what is rounded.

    Attributes:
        proto: the same with clipped inputs and rounded weights.
    """

    def __init__(self, proto: onnx.ModelProto, rounding: Rounding) -> None:
        self._limit = rounding.limit
        self._clips: dict[str, InputScale] = {}
        self._axes: dict[str, int] = {}
        self._blocks: dict[str, Blocks] = {}
        self.proto = proto
        if not rounding.scales and not rounding.blocks:
            return
        model = ir.from_proto(proto)
        sites = rounding.sites(model)
        # The axis of W's columns in what is stored.
        self._axes = {
            site.weight.initializer.name or "": 0 if site.weight.transposed else 1 for site in sites
        }
        names = UniqueNames(value_names(model), separator="_")
        clipped: dict[tuple[ir.Value, InputScale], ir.Value] = {}
        for site in sites:
            output, x = site.node.outputs[0].name or "", site.input
            if output in rounding.blocks:
                self._blocks[site.weight.initializer.name or ""] = rounding.blocks[output]
                continue
            scale = rounding.scales[output]
            if (x, scale) not in clipped:
                clipped[x, scale] = self._clip(site, scale, names)
            site.node.replace_input_with(1 - site.weight_index, clipped[x, scale])
        for value in {site.weight.initializer for site in sites}:
            rounded = self.rounded({value.name or "": array_of(value)})
            set_array(value, rounded[value.name or ""])
        self.proto = ir.to_proto(model)

    def rounded(self, weights: Mapping[str, Float32]) -> dict[str, Float32]:
        """``weights`` as they will be served: those of layers that are rounded, rounded."""
        return {name: self._served(name, array) for name, array in weights.items()}

    def _served(self, name: str, array: Float32) -> Float32:
        if name not in self._axes:
            return array
        axis = self._axes[name]
        if (blocks := self._blocks.get(name)) is None:
            return round_columns(array, axis, self._limit)
        weight = array if axis else array.T
        served = round_with(weight, blocks.scale, blocks.bits).values()
        return served if axis else np.ascontiguousarray(served.T)

    def write_rounding(self, proto: onnx.ModelProto) -> None:
        """Let ``proto``, made of the graph, round where it clips, in place."""
        if not self._clips:
            return
        nodes: list[onnx.NodeProto] = []
        for node in proto.graph.node:
            scale = self._clips.get(node.output[0]) if node.op_type == "Clip" else None
            if scale is None:
                nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
                continue
            x, y = node.input[0], node.output[0]
            step, zero, integers = f"{y}.scale", f"{y}.zero_point", f"{y}.integers"
            for name, number in ((step, scale.scale), (zero, scale.zero_point)):
                proto.graph.initializer.append(numpy_helper.from_array(np.asarray(number), name))
            nodes.append(helper.make_node("QuantizeLinear", [x, step, zero], [integers]))
            nodes.append(helper.make_node("DequantizeLinear", [integers, step, zero], [y]))
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)

    def _clip(self, site: LinearSite, scale: InputScale, names: UniqueNames) -> ir.Value:
        """The input of ``site`` within the range of ``scale``."""
        graph, x = site.node.graph, site.input
        assert graph is not None
        name = names(f"{x.name}.clipped")
        zero = int(scale.zero_point)
        bounds = [
            register(graph, ir.tensor(np.asarray(bound, np.float32), name=names(f"{name}.{end}")))
            for end, bound in (
                ("low", -zero * float(scale.scale)),
                ("high", (_LARGEST - zero) * float(scale.scale)),
            )
        ]
        output = ir.Value(name=name, shape=x.shape, type=x.type)
        node = ir.Node("", "Clip", [x, *bounds], outputs=[output], name=name)
        producer = x.producer()
        if producer is not None and producer.graph is graph:
            graph.insert_after(producer, node)
        else:
            graph.insert_before(graph[0], node)
        self._clips[name] = scale
        return output


def round_columns(array: Array, axis: int, limit: int) -> Float32:
    """``array``, a float32 matrix with the columns of W along ``axis``, rounded to integers.

    What :func:`~graph_passes.factorization.rounding.round_weight` makes of it, as floats.
    """
    largest = np.abs(array).max(axis=1 - axis, keepdims=True)
    scale = np.maximum(largest / np.float32(limit), np.finfo(np.float32).tiny)
    rounded = array / scale
    np.rint(rounded, out=rounded)
    rounded *= scale
    return np.asarray(rounded, np.float32)
