"""A compressed model's distance from the original, and the gradient of that, by PyTorch.

For values v that both models compute, with what the original computed fed as the target::

    d_v  = v − target_v
    loss = Σ_v Σ_p weight_v(p)·‖d_v(p)‖²  +  Σ_v Σ_s ‖Σ_t share_v(s, t)·d_v(s, t)‖²
           − Σ_s Σ_c label_o(s, c)·log softmax(o(s))_c

over positions p, and over samples s with their positions t; the last term is there for one output o
of logits, where labels are. Weights, shares and labels are fed too: they hold the padding mask and
every normalization (:mod:`pipeline.recover.teacher`), so the loss knows of none.

Layers that are going to multiply integers do so in effect already
(:mod:`pipeline.recover.rounding`).

Products on the way to a gradient may be of bfloat16, where these are faster: noise far below
that of the batches. The loss alone is in single precision, as what is served is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import torch
from torch import Tensor

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.pipeline.evidence.adjoint import in_single, prepared
from compress_onnx.pipeline.recover.compared import (
    Compared,
    label_of,
    share_of,
    target_of,
    weight_of,
)
from compress_onnx.pipeline.recover.rounded_graph import RoundedGraph
from compress_onnx.pipeline.recover.rounding import Rounding
from compress_onnx.pipeline.recover.torch_graph import TorchGraph


class Distillation:
    """Loss and gradients of a model.

    Args:
        model: the compressed model, with all its weights inside; unchanged.
        trained: the weights to differentiate by.
        compared: the values that the loss compares.
        rounding: which layers are rounded.
        device: of PyTorch, where it runs.
        half: gradients take products of bfloat16.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        trained: Sequence[str],
        compared: Sequence[Compared],
        *,
        rounding: Rounding | None = None,
        device: str = "cpu",
        half: bool = False,
    ) -> None:
        proto = onnx.ModelProto()
        proto.CopyFrom(model)
        del proto.graph.value_info[:]
        self._rounded = RoundedGraph(prepared(proto), rounding or Rounding())
        self._graph = TorchGraph(self._rounded.proto, device)
        self._inputs = {value.name for value in self._rounded.proto.graph.input}
        self._trained = list(trained)
        self._compared = list(compared)
        self._device = device
        self._half = half

    def served(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Trained ``weights`` as they are fed and served: rounded, where they will be."""
        return self._rounded.rounded(weights)

    def loss(self, feeds: Mapping[str, Array], weights: Mapping[str, Tensor]) -> float:
        """The loss at ``feeds`` (the model's inputs, targets and shares), of :meth:`served`."""
        with torch.no_grad():
            return float(self._loss(feeds, weights, half=False))

    def gradient(
        self, feeds: Mapping[str, Array], weights: Mapping[str, Tensor]
    ) -> tuple[float, dict[str, Tensor]]:
        """The loss, and its gradient by trained weight.

        Raises:
            NotDifferentiableError: an operator of the model has no gradient.
        """
        leaves = {name: weights[name].detach().requires_grad_() for name in self._trained}
        loss = self._loss(feeds, leaves, self._half)
        found = torch.autograd.grad(
            loss, list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        return float(loss.detach()), dict(zip(leaves, found, strict=True))

    def _loss(
        self, feeds: Mapping[str, Array], weights: Mapping[str, Tensor], half: bool
    ) -> Tensor:
        given = {
            name: torch.from_numpy(np.ascontiguousarray(array)).to(self._device)
            for name, array in in_single(feeds).items()
        }
        inputs = {name: value for name, value in given.items() if name in self._inputs}
        names = [value.name for value in self._compared]
        values = self._graph({**inputs, **weights}, names, half)
        terms = [t for value in self._compared for t in _terms(value, values[value.name], given)]
        return torch.stack(terms).sum()


def _terms(compared: Compared, value: Tensor, feeds: Mapping[str, Tensor]) -> list[Tensor]:
    name = compared.name
    difference = value - feeds[target_of(name)]
    terms = [(difference.square() * feeds[weight_of(name)]).sum()]
    if compared.pooled:
        terms.append((difference * feeds[share_of(name)]).sum(dim=1).square().sum())
    if compared.labelled:
        terms.append(-(torch.log_softmax(value, dim=-1) * feeds[label_of(name)]).sum())
    return terms
