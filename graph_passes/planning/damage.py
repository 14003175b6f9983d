"""What a weight costs the model at each rank: the curves that ranks are allocated by.

====================  =======================================  ==================================
``energy``            relative squared error, of the method    no data; equal at rank 0 everywhere
``sensitivity``       the method's squared error × slope       slope measured at the outputs
``gauss-newton``      squared change of the model's outputs    predicted from gradients
====================  =======================================  ==================================

A weight with a site that was not measured, or has no gradients, has no curve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from compress_onnx.graph_passes.allocation import Damage
from compress_onnx.graph_passes.arrays import Float64
from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization import Method
from compress_onnx.graph_passes.factorization.base import Decomposition
from compress_onnx.graph_passes.factorization.gauss_newton import GaussNewton
from compress_onnx.graph_passes.planning.decompositions import Decompositions
from compress_onnx.graph_passes.planning.evidence import evidence_in
from compress_onnx.graph_passes.sites.linear_site import LinearSite

DamageCurves = Callable[[Sequence[Sequence[LinearSite]]], Iterator[Float64 | None]]
"""What each of several weights costs the model at each rank; None where that is not known.

A weight is the sites that share it."""


def damage_curve(
    kind: Damage,
    method: Method,
    decompositions: Decompositions,
    slopes: Mapping[str, float] | None = None,
) -> DamageCurves | None:
    """The curve ``[q + 1]`` of each weight, computed when it is asked for; None if none is needed.

    Args:
        kind: what damage is.
        method: how the weights are going to be factored.
        decompositions: of the model's weights, with what is known about their inputs.
        slopes: by weight key, squared output change for a unit of the method's squared error.

    Raises:
        RequestError: the damage needs gradients or slopes that there are not.
    """
    if kind == "none":
        return None
    if kind == "sensitivity" and slopes is None:
        raise RequestError("the allocation sensitivity needs calibration data")
    if kind == "gauss-newton" and not any(
        known.gradients for known in decompositions.stats.values()
    ):
        raise RequestError("the allocation gauss-newton needs calibration data with gradients")

    by = GaussNewton() if kind == "gauss-newton" and not method.needs_gradients else method

    def curves(weights: Sequence[Sequence[LinearSite]]) -> Iterator[Float64 | None]:
        units = [unit(sites) for sites in weights]
        known = zip(weights, units, strict=True)
        found = decompositions.of_all(by, [sites for sites, one in known if one is not None])
        for one in units:
            yield None if one is None else scaled(next(found), one)

    def unit(sites: Sequence[LinearSite]) -> float | None:
        """What one of the weight's squared errors costs; None where that is not known."""
        if kind == "sensitivity":
            assert slopes is not None
            return slopes.get(sites[0].weight.key)
        known = kind == "energy" or evidence_in(decompositions.known(sites)) == "gradients"
        return 1.0 if known else None

    def scaled(found: Decomposition, one: float) -> Float64:
        return found.tail if kind == "energy" else one * found.energy * found.tail

    return curves
