"""What a weight costs the model at each rank: the curves that ranks are allocated by.

====================  =======================================  ==================================
``energy``            relative squared error, of the method    no data; equal at rank 0 everywhere
``sensitivity``       the method's squared error × slope       slope measured at the outputs
``gauss-newton``      squared change of the model's outputs    predicted from gradients
====================  =======================================  ==================================

A weight with a site that was not measured, or has no gradients, has no curve.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from compress_onnx.graph_passes.allocation import Damage
from compress_onnx.graph_passes.arrays import Float64
from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization import Method
from compress_onnx.graph_passes.factorization.gauss_newton import GaussNewton
from compress_onnx.graph_passes.planning.decompositions import Decompositions
from compress_onnx.graph_passes.planning.evidence import evidence_in
from compress_onnx.graph_passes.sites.linear_site import LinearSite

DamageCurve = Callable[[Sequence[LinearSite]], Float64 | None]
"""What the weight that some sites share costs the model at each rank; None where not known."""


def damage_curve(
    kind: Damage,
    method: Method,
    decompositions: Decompositions,
    slopes: Mapping[str, float] | None = None,
) -> DamageCurve | None:
    """The curve ``[q + 1]`` of any weight, computed when it is asked for; None if none is needed.

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

    def curve(sites: Sequence[LinearSite]) -> Float64 | None:
        key = sites[0].weight.key
        if kind == "gauss-newton":
            if evidence_in(decompositions.known(sites)) != "gradients":
                return None
            by = method if method.needs_gradients else GaussNewton()
            found = decompositions.of(by, sites)
            return found.energy * found.tail
        if kind == "energy":
            return decompositions.of(method, sites).tail
        assert slopes is not None
        if key not in slopes:
            return None
        found = decompositions.of(method, sites)
        return slopes[key] * found.energy * found.tail

    return curve
