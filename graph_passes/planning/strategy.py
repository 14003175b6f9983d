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

The method ``neurons`` is ``auto`` for feed-forward networks, which lose neurons, and leaves all
other weights alone.

``auto`` leaves no weight dense for lack of evidence: one that there is less about than about the
others (a weight on the left has no gradients, one inside an If, Loop or Scan no statistics at all)
has a *stand-in*, the method of the row of the table that its own evidence allows. What it would
cost the model is then not known in the unit of the others, and numbers in two units must not be
weighed against each other: stand-ins keep the budget's own share each, by uniform ranks, and the
others share the rest of the budget out, which is that same share of theirs.
"""

from __future__ import annotations

from compress_onnx.graph_passes.allocation import AllocatorName
from compress_onnx.graph_passes.planning.evidence import EvidenceKind
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec

AUTO = "auto"
NEURONS = "neurons"

_BEST: dict[EvidenceKind, tuple[str, AllocatorName]] = {
    "none": ("svd", "uniform"),
    "activations": ("asvd", "sensitivity"),
    "gradients": ("gauss-newton", "gauss-newton"),
}


def concrete(request: CompressionSpec, evidence: EvidenceKind) -> CompressionSpec:
    """The request with nothing left open."""
    method, allocation = _BEST[evidence]
    open_method = request.method.name in {AUTO, NEURONS}
    if not open_method:
        method = request.method.name
        allocation = "gauss-newton" if method == "gauss-newton" else "uniform"
    sequential = open_method and evidence != "none"
    return request.model_copy(
        update={
            "method": request.method.model_copy(update={"name": method}),
            "allocation": allocation if request.allocation == AUTO else request.allocation,
            "objective": request.objective or "positions",
            "ffns": "alone" if request.method.name == NEURONS else request.ffns or "factor",
            "sequential": sequential if request.sequential is None else request.sequential,
            "stand_ins": open_method if request.stand_ins is None else request.stand_ins,
        }
    )


def best_method(evidence: EvidenceKind) -> MethodSpec:
    """What ``auto`` factors a weight by about which there is this ``evidence``."""
    return MethodSpec(name=_BEST[evidence][0])
