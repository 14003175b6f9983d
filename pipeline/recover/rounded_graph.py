"""Graphs that compute what they will be rounded to (:mod:`pipeline.recover.rounding`)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor

from compress_onnx.graph_passes.factorization.rounding import InputScale
from compress_onnx.graph_passes.factorization.weight_only import round_with
from compress_onnx.graph_passes.rewriting.initializers import register
from compress_onnx.graph_passes.rewriting.trainable import array_of, set_array
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.graph_passes.sites.naming import UniqueNames, value_names
from compress_onnx.pipeline.recover.rounding import Blocks, Rounding
from compress_onnx.pipeline.recover.torch_operators import FAKE_QUANTIZE, OWN_DOMAIN


class RoundedGraph:
    """A graph in which layers compute what they will be rounded to.

    Args:
        proto: the model, with its weights inside, in opset 11 or later; unchanged.
        rounding: what is rounded.

    Attributes:
        proto: the same with rounded inputs and weights.
    """

    def __init__(self, proto: onnx.ModelProto, rounding: Rounding) -> None:
        self._limit = rounding.limit
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
        rounded: dict[tuple[ir.Value, InputScale], ir.Value] = {}
        for site in sites:
            output, x = site.node.outputs[0].name or "", site.input
            if output in rounding.blocks:
                self._blocks[site.weight.initializer.name or ""] = rounding.blocks[output]
                continue
            scale = rounding.scales[output]
            if (x, scale) not in rounded:
                rounded[x, scale] = _round(site, scale, names)
            site.node.replace_input_with(1 - site.weight_index, rounded[x, scale])
        for value in {site.weight.initializer for site in sites}:
            served = self._served(value.name or "", torch.from_numpy(array_of(value)))
            set_array(value, served.numpy())
        self.proto = ir.to_proto(model)

    def rounded(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``weights`` as they will be served: those of layers that are rounded, rounded."""
        return {name: self._served(name, array) for name, array in weights.items()}

    def _served(self, name: str, array: Tensor) -> Tensor:
        if name not in self._axes:
            return array
        axis = self._axes[name]
        if (blocks := self._blocks.get(name)) is None:
            return round_columns(array, axis, self._limit)
        weight = array.cpu().numpy()
        served = round_with(weight if axis else weight.T, blocks.scale, blocks.bits).values()
        return torch.from_numpy(np.ascontiguousarray(served if axis else served.T)).to(array.device)


def _round(site: LinearSite, scale: InputScale, names: UniqueNames) -> ir.Value:
    """The input of ``site`` rounded to ``scale``."""
    graph, x = site.node.graph, site.input
    assert graph is not None
    name = names(f"{x.name}.rounded")
    step, zero = (
        register(graph, ir.tensor(np.asarray(number), name=names(f"{name}.{what}")))
        for what, number in (("scale", scale.scale), ("zero_point", scale.zero_point))
    )
    output = ir.Value(name=name, shape=x.shape, type=x.type)
    node = ir.Node(OWN_DOMAIN, FAKE_QUANTIZE, [x, step, zero], outputs=[output])
    producer = x.producer()
    if producer is not None and producer.graph is graph:
        graph.insert_after(producer, node)
    else:
        graph.insert_before(graph[0], node)
    return output


def round_columns(array: Tensor, axis: int, limit: int) -> Tensor:
    """``array``, a float32 matrix with the columns of W along ``axis``, rounded to integers.

    What :func:`~graph_passes.factorization.rounding.round_weight` makes of it, as floats.
    """
    largest = array.abs().amax(dim=1 - axis, keepdim=True)
    scale = torch.clamp(largest / limit, min=torch.finfo(torch.float32).tiny)
    return torch.round(array / scale) * scale
