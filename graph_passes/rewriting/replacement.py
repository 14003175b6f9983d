"""What will stand for a weight: factors and corrected biases, computed and not in the graph yet.

A plan can turn out to be impossible as late as in the numbers of its last weight, when factors do
not fit into the weight's type. So that a model is never left half rewritten, the numbers of all
weights go into the sink first, which is where they belong anyway, and graphs change afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compress_onnx.graph_passes.arrays import Array, Float64
from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization import Term
from compress_onnx.graph_passes.factorization.storage import Packed, rounded
from compress_onnx.graph_passes.planning.factoring import FactoredWeight
from compress_onnx.graph_passes.rewriting.initializers import Initializers, Kept
from compress_onnx.graph_passes.rewriting.told import DAMAGE, ERROR, FORM, METHOD, RANK, figure
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.graph_passes.sites.weights import read


@dataclass(frozen=True)
class Replacement:
    """What will stand for the weight that some sites share.

    Attributes:
        sites: that share it.
        factors: ``(down, up)`` of each term, as the product with a weight on that side needs them.
        biases: by site name, the bias that the site then has, where it is corrected.
        properties: metadata of the nodes that come in.
    """

    sites: Sequence[LinearSite]
    factors: Sequence[tuple[Kept, Kept]]
    biases: Mapping[str, Kept]
    properties: Mapping[str, str]


def prepare(factored: FactoredWeight, initializers: Initializers) -> Replacement:
    """Put the numbers of a weight that was factored into the sink.

    Raises:
        RequestError: a corrected bias does not fit into the weight's type.
    """
    assert factored.plan.method is not None
    damage = factored.plan.damage
    correction = factored.factorization.bias
    return Replacement(
        factored.sites,
        [_keep(factored.sites[0], term, initializers) for term in factored.factorization.terms],
        {
            site.name: initializers.keep(
                site.weight.initializer, "lowrank.bias", corrected_bias(site, correction)
            )
            for site in factored.sites
            if correction is not None and site.corrected_bias
        },
        {
            FORM: "low rank",
            METHOD: factored.plan.method.name,
            RANK: str(factored.plan.rank),
            ERROR: figure(factored.error.reached),
            **({} if damage is None else {DAMAGE: figure(damage)}),
        },
    )


def _keep(site: LinearSite, term: Term, initializers: Initializers) -> tuple[Kept, Kept]:
    """The factors of ``term``, transposed where the weight is on the left."""
    down, up = term.packed or (None, None)

    def keep(role: str, factor: Array, packed: Packed | None) -> Kept:
        weight = site.weight.initializer
        if not site.on_left:
            return initializers.keep(weight, f"lowrank.{role}", factor, packed)
        seen = np.swapaxes(factor, -1, -2)  # [.., r, K] or [.., N, r]
        return initializers.keep(weight, f"lowrank.{role}", seen, packed and packed.transposed())

    return keep("down", term.down, down), keep("up", term.up, up)


def corrected_bias(site: LinearSite, correction: Float64) -> Array:
    """The bias of ``site`` with the ``correction`` [.., N] of its product, in the weight's type.

    That is ``beta·b + alpha·c``, with as many axes as the bias that it replaces: one with more axes
    than the product would add axes to the output.

    Raises:
        RequestError: the type cannot hold it.
    """
    values = site.alpha * correction
    if site.bias is not None:
        values = site.beta * _old_bias(site) + values
    if site.on_left or site.weight.stacked:
        values = np.expand_dims(values, -1 if site.on_left else -2)  # [.., N, 1] or [.., 1, N]
    if site.bias is not None:
        assert site.bias.value.const_value is not None
        missing = len(site.bias.value.const_value.shape) - values.ndim
        values = values.reshape((1,) * max(missing, 0) + values.shape)
    assert site.weight.initializer.const_value is not None
    try:
        return rounded(values, site.weight.initializer.const_value.dtype.numpy())
    except RequestError as error:
        raise RequestError(f"the corrected bias of {site.name}: {error}") from error


def _old_bias(site: LinearSite) -> Float64:
    """``[.., N]`` the bias that there is."""
    assert site.bias is not None
    assert site.bias.value.const_value is not None
    old = read(site.bias.value.const_value).astype(np.float64)
    if not site.weight.stacked:
        return np.broadcast_to(old.reshape(-1), (site.out_features,))
    column = (site.out_features, 1) if site.on_left else (1, site.out_features)
    full = np.broadcast_to(old, (*site.weight.leading, *column))
    return full.reshape(*site.weight.leading, site.out_features)
