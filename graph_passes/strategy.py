"""What the open parts of a request stand for, with the evidence at hand.

=============  ================================  ==================================================
``method``     evidence                          ``auto`` becomes
=============  ================================  ==================================================
``auto``       gradients at every site           gauss-newton, its own ranks, sequential
``auto``       activations                       asvd, ranks by measured sensitivity, sequential
``auto``       none                              svd, uniform ranks
gauss-newton   gradients at every site           its own ranks, one shot
any other      any                               uniform ranks, one shot
=============  ================================  ==================================================

What the request says itself always stays. The objective is each position, unless it is named.
"""

from __future__ import annotations

from typing import Literal

from graph_passes.request import CompressionSpec

AUTO = "auto"

Evidence = Literal["none", "activations", "gradients"]

_BEST: dict[Evidence, tuple[str, str]] = {
    "none": ("svd", "uniform"),
    "activations": ("asvd", "sensitivity"),
    "gradients": ("gauss-newton", "gauss-newton"),
}


def concrete(request: CompressionSpec, evidence: Evidence) -> CompressionSpec:
    """The request with nothing left open."""
    method, allocation = _BEST[evidence]
    open_method = request.method.name == AUTO
    if not open_method:
        method = request.method.name
        allocation = "gauss-newton" if method == "gauss-newton" else "uniform"
    sequential = open_method and evidence != "none"
    return request.model_copy(
        update={
            "method": request.method.model_copy(update={"name": method}),
            "allocation": allocation if request.allocation == AUTO else request.allocation,
            "objective": request.objective or "positions",
            "sequential": sequential if request.sequential is None else request.sequential,
        }
    )
