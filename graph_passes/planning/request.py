"""What the user asks for: which sites, which method, how small.

Options that are names are types here, for whoever offers them: a command line, a recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from compress_onnx.graph_passes.allocation import AllocatorName
from compress_onnx.graph_passes.factorization.storage import Storage
from compress_onnx.graph_passes.planning.plan import MethodSpec, Objective, Shrinkage

__all__ = [
    "BUDGETS",
    "QUANTITIES",
    "Allocation",
    "Budget",
    "CompressionSpec",
    "FFNPolicy",
    "Objective",
    "Selection",
    "Shrinkage",
    "SiblingPolicy",
    "SiteGroup",
    "Storage",
    "budget_changes",
]

Allocation = Literal["auto", AllocatorName]
SiblingPolicy = Literal["auto", "never"]
FFNPolicy = Literal["factor", "neurons", "alone"]
SiteGroup = Literal["all", "attention", "mlp", "other"]
Budget = Literal["params", "bytes", "flops", "latency"]
BUDGETS: tuple[Budget, ...] = get_args(Budget)
QUANTITIES: Mapping[Budget, str] = {
    "params": "parameters",
    "bytes": "bytes",
    "flops": "FLOPs",
    "latency": "latency",
}
"""What a budget is a share of, in words."""


class Selection(BaseModel):
    """Which linear sites to compress: glob patterns on module paths, and a group."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    group: SiteGroup = "all"


class CompressionSpec(BaseModel):
    """How to compress: a budget, or the same ``rank`` everywhere.

    A budget is a share of what the selected linear weights take in the original: of their
    ``params``, of their ``bytes`` in the file, or of the ``flops`` or the measured ``latency`` of
    one inference. With none, half of the parameters are kept. ``rank_multiple`` keeps ranks at
    sizes that matrix kernels like; ``allow_larger`` also rewrites where the factors are not
    smaller. ``sequential`` factors each site with the errors of the earlier ones in sight;
    ``objective`` is what about the outputs matters, to all that looks at them
    (:mod:`pipeline.evidence.objective`). ``shrinkage`` pulls the metric of the calibration data
    towards a broader one (:mod:`pipeline.evidence.mixture`). ``store`` is how the file holds
    factors (:mod:`graph_passes.factorization.storage`). ``siblings`` are never factored together,
    or where that does less damage (:mod:`graph_passes.planning.sharing`); the method ``auto`` gains
    nothing by it. ``ffns`` are feed-forward networks: each of their weights is factored, or the
    network as a whole loses ``neurons`` (:mod:`graph_passes.planning.ffns`), ``alone`` where
    nothing else is to be changed. ``stand_ins`` lets a weight without the evidence that the method
    needs have the best method that its own allows, as ``auto`` does. What is left open (the method
    ``auto``, the allocation ``auto``, no word about the rest) becomes concrete in
    :mod:`graph_passes.planning.strategy`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: MethodSpec = MethodSpec()
    params: float | None = Field(default=None, gt=0)
    bytes: float | None = Field(default=None, gt=0)
    flops: float | None = Field(default=None, gt=0)
    latency: float | None = Field(default=None, gt=0)
    rank: int | None = Field(default=None, ge=1)
    allocation: Allocation = "auto"
    sequential: bool | None = None
    objective: Objective | None = None
    shrinkage: Shrinkage | None = None
    store: Storage = "same"
    siblings: SiblingPolicy = "never"
    ffns: FFNPolicy | None = None
    stand_ins: bool | None = None
    rank_multiple: int = Field(default=8, ge=1)
    allow_larger: bool = False
    select: Selection = Selection()

    @model_validator(mode="after")
    def _one_budget(self) -> CompressionSpec:
        given = [name for name in (*BUDGETS, "rank") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other")
        if self.share > 1 and not self.allow_larger:
            raise ValueError(f"{self.budget} is a share between 0 and 1")
        return self

    @property
    def budget(self) -> Budget:
        """What the share is a share of."""
        return next((name for name in BUDGETS if getattr(self, name) is not None), "params")

    @property
    def share(self) -> float:
        """The share of the budget's quantity to keep, where no rank is given."""
        share: float | None = getattr(self, self.budget)
        return 0.5 if share is None else share

    def with_share(self, share: float) -> CompressionSpec:
        """The same request for another share of the same quantity, and no rank."""
        return self.model_copy(update={self.budget: share, "rank": None})


def budget_changes(budget: str, share: float) -> dict[str, object]:
    """What to change in a request so that ``share`` of ``budget``, or a rank, is the only limit."""
    return {**dict.fromkeys((*BUDGETS, "rank")), budget: share}
