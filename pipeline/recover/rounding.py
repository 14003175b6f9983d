"""Training through rounding: layers that will be rounded compute in training what they will.

A layer ``y = x·W`` is going to be served as ``x̂·Ŵ`` (:mod:`graph_passes.factorization.rounding`)::

    x̂ = s·(q − z)      q = clip(rint(x/s) + z, 0, 255)
    Ŵ = Q·diag(t)      Q = rint(W·diag(t)⁻¹),  t_n = max_k |W_kn| / limit

Rounding has no useful gradient. The straight-through estimator takes that of what it rounds::

    ∂x̂/∂x = 1 where 0 ≤ rint(x/s) + z ≤ 255, else 0         ∂Ŵ/∂W = 1

Weights are rounded outside of the graph (:mod:`pipeline.recover.rounded_graph`), which is fed Ŵ:
the gradient by Ŵ is the one by W. Inputs are rounded inside, by an operator that has this
derivative (:mod:`pipeline.recover.torch_operators`).

Scales of inputs stay what calibration found; those of columns follow their weights.

A layer whose weight alone is rounded computes ``x·Ŵ`` with ``Ŵ = s·(Q − z)`` in blocks of rows
(:mod:`graph_passes.factorization.weight_only`). The estimator is the same. Its scales s stay as
they are, so that a weight which starts at Ŵ starts with the integers that were found for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from compress_onnx.graph_passes.arrays import Float32
from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization.rounding import LIMIT, InputScale
from compress_onnx.graph_passes.factorization.weight_only import Bits
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.graph_passes.sites.weights import readers


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
