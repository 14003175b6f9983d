"""What the user asks for: which sites, which method, how small."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from graph_passes.plan import MethodSpec


class Selection(BaseModel):
    """Which linear sites to compress: glob patterns on module paths, and a group."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    group: Literal["all", "attention", "mlp", "other"] = "all"


class CompressionSpec(BaseModel):
    """How to compress: ``params`` (share of the selected linear parameters) or ``rank``.

    With neither, half of the parameters are kept. ``rank_multiple`` keeps ranks at sizes that
    matrix kernels like; ``allow_larger`` also rewrites where the factors are not smaller.
    ``sequential`` factors each site with the errors of the earlier ones in sight; ``objective`` is
    what about the outputs matters, to all that looks at them (:mod:`pipeline.objective`). What is
    left open (the method ``auto``, the allocation ``auto``, no word about the rest) becomes
    concrete in :mod:`graph_passes.strategy`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: MethodSpec = MethodSpec()
    params: float | None = Field(default=None, gt=0)
    rank: int | None = Field(default=None, ge=1)
    allocation: str = "auto"
    sequential: bool | None = None
    objective: Literal["positions", "pooled"] | None = None
    rank_multiple: int = Field(default=8, ge=1)
    allow_larger: bool = False
    select: Selection = Selection()

    @model_validator(mode="after")
    def _one_budget(self) -> CompressionSpec:
        if self.params is not None and self.rank is not None:
            raise ValueError("params and rank exclude each other")
        if self.params is not None and self.params > 1 and not self.allow_larger:
            raise ValueError("params is a share between 0 and 1")
        return self

    @property
    def share(self) -> float:
        """The share of the selected parameters to keep, where no rank is given."""
        return 0.5 if self.params is None else self.params
