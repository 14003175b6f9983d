"""The error of a whole plan, beside the least that factors of its size can have.

Over the selected weights w, with X_w the centred inputs of all sites of w on the calibration data
and B_w what W_w becomes::

    reached²           =  Σ ‖X_w (W_w − B_w)‖²  /  Σ ‖X_w W_w‖²
    bound²             =  Σ min over B of rank r_w of ‖X_w (W_w − B)‖²  /  the same
    allocation bound²  =  the least such sum over all ranks with as many parameters  /  the same

so that allocation bound <= bound <= reached; one-shot ``asvd`` reaches the bound. The inputs are
those of the *original* model, also where the plan repairs in sequence: what is bounded is the error
that sites make by themselves, not what it does to later sites or to the model's outputs. A method
that looks at the outputs is right to exceed this bound.

Rules:

1. A weight that stays dense has no error, and its parameters count.
2. Errors in different metrics are never summed. Where any weight has statistics of its inputs,
   those without are left out; where none has, the metric is that of the weights themselves.
3. A weight that no plan may touch (because a site that shares it is not selected, or because its
   numbers are not finite) is left out.
4. Networks that lose neurons are left out: parameters go there from weights that have no error.
5. The allocation bound is over chains ``down·up``, or the dense weight, for each weight by itself:
   the optimum of a linear relaxation, which no choice of ranks can be below. Siblings that share a
   ``down`` are one weight [W₁ … Wₛ]: all three errors are those of the joined sites.
"""

from __future__ import annotations

import numpy as np

from compress_onnx.graph_passes.allocation.least_damage import least_possible
from compress_onnx.graph_passes.arrays import Float64
from compress_onnx.graph_passes.planning.decompositions import Decompositions
from compress_onnx.graph_passes.planning.evidence import evidence_in
from compress_onnx.graph_passes.planning.factoring import FactoredWeight, remeasured
from compress_onnx.graph_passes.planning.fitting import recounted
from compress_onnx.graph_passes.planning.plan import CompressionPlan, PlanError, SiteError
from compress_onnx.graph_passes.planning.ranks import candidate_of
from compress_onnx.graph_passes.sites.find import SiteTable
from compress_onnx.graph_passes.sites.grouping import group_by_weight


class PlanErrors:
    """Collects the errors of a plan while it is carried out.

    Args:
        table: the sites of the model, before any is rewritten.
        plan: what is carried out.
        decompositions: of its weights, with what is known about their inputs.
        unseen: what samples that nothing was made from tell about the inputs; None without any.
    """

    def __init__(
        self,
        table: SiteTable,
        plan: CompressionPlan,
        decompositions: Decompositions,
        unseen: Decompositions | None = None,
    ) -> None:
        self._groups = group_by_weight(table.sites)
        self._plan = recounted(table, plan)
        self._decompositions = decompositions
        self._errors: dict[str, SiteError] = {}
        self._least: dict[str, Float64] = {}
        self._unseen = unseen
        self._elsewhere = None if unseen is None else PlanErrors(table, plan, unseen)

    def add(self, factored: FactoredWeight) -> None:
        """Note what became of one weight."""
        self._errors[factored.plan.weight] = factored.error
        self._least[factored.plan.weight] = factored.least
        if self._elsewhere is not None and self._unseen is not None:
            self._elsewhere.add(remeasured(factored, self._unseen))

    def result(self) -> CompressionPlan:
        """The plan with the error of each weight, and of all together, and with true figures.

        Decomposes the selected weights that stay dense; those that were factored are not needed.
        """
        sites = tuple(
            site.model_copy(update={"error": self._errors.get(site.weight)})
            for site in self._plan.sites
        )
        elsewhere = None if self._elsewhere is None else self._elsewhere.result().error
        return self._plan.model_copy(
            update={"sites": sites, "error": self._whole(), "held_out_error": elsewhere}
        )

    def _whole(self) -> PlanError | None:
        chosen = {s.weight: s for s in self._plan.selected if s.decision != "neurons"}
        calibrated = any(self._calibrated(key) for key in chosen)
        found = {key: self._curve(key) for key in chosen if self._counts(key, calibrated)}
        least = {key: curve for key, curve in found.items() if np.isfinite(curve).all()}
        if not least:
            return None
        reached = bound = 0.0
        for key in [key for key in least if key in self._errors]:
            rank = chosen[key].rank
            assert rank is not None
            reached += self._errors[key].reached ** 2 * float(least[key][0])
            bound += float(least[key][rank])
        budget = sum(chosen[key].parameters_after for key in least)
        candidates = [candidate_of(self._groups[key], curve) for key, curve in least.items()]
        energy = sum(float(curve[0]) for curve in least.values())
        return PlanError(
            metric="activation" if calibrated else "weight",
            reached=_ratio(reached, energy),
            bound=_ratio(bound, energy),
            allocation_bound=_ratio(least_possible(candidates, budget), energy),
            weights=len(least),
            left_out=len(chosen) - len(least),
        )

    def _counts(self, key: str, calibrated: bool) -> bool:
        """Rules 2 and 3, as far as no numbers are needed."""
        selected = {site.site for site in self._plan.selected}
        sites = self._groups.get(key, ())
        whole = bool(sites) and all(site.name in selected for site in sites)
        return whole and (self._calibrated(key) or not calibrated)

    def _calibrated(self, key: str) -> bool:
        sites = self._groups.get(key, ())
        return bool(sites) and evidence_in(self._decompositions.known(sites)) != "none"

    def _curve(self, key: str) -> Float64:
        if key in self._least:
            return self._least[key]
        weight = self._groups[key][0].weight.array()
        if not np.isfinite(weight.astype(np.float32, copy=False)).all():
            return np.full(1, np.nan)
        return self._decompositions.least(self._groups[key])


def _ratio(part: float, whole: float) -> float:
    return float(np.sqrt(part / whole)) if whole > 0 else 0.0
