"""Stages: each factors what the earlier ones left over, in the metric of the method.

With exact stages the sum equals one stage of the summed rank: stage i takes singular triplets that
the earlier ones left untouched (Eckart-Young). Stages can only differ from that where something
non-linear stands between them. Here this is the rounding of the stored factors
(:mod:`~graph_passes.factorization.storage`): with ``R_0 = W``, a stage factors what is really left,
``R_i = R_{i-1} − round(down_i)·round(up_i)``, so that later stages also repair the rounding of the
earlier ones. That is worth more the coarser the storage is, and nothing for float32.

Layouts: ``merged`` concatenates the factors (two MatMuls, stages cost nothing at run time);
``branches`` keeps one chain a stage, summed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from graph_passes.factorization.base import Array, Factorization, Float64, Term
from graph_passes.factorization.projection import Projection, project
from graph_passes.factorization.storage import Storage

Layout = Literal["merged", "branches"]
Stages = Annotated[int, Field(ge=1, le=64)]


@dataclass(frozen=True)
class ProjectedWeight:
    """A weight with its nested optimal subspaces, and how many stages to build from it.

    Attributes:
        weight: ``[K, N]``.
        projection: its subspaces in the metric.
        root: S of the metric ``SᵀS``, for the later stages; None for the identity.
        mean: ``[K]`` of the site's inputs μ, which asks for the bias correction
            ``b' = b + μ·(W − Σ down·up)``; it keeps the mean output exact.
        stages: how many; they share the rank evenly.
        layout: ``merged`` or ``branches``.
    """

    weight: Array
    projection: Projection
    root: Float64 | None = None
    mean: Float64 | None = None
    stages: int = 1
    layout: Layout = "merged"

    @property
    def tail(self) -> Float64:
        """``[q + 1]`` squared error at each summed rank without rounding, relative to rank 0."""
        return self.projection.tail

    @property
    def energy(self) -> float:
        """The squared error at rank 0."""
        return self.projection.energy

    def factorize(self, rank: int, storage: Storage = "same") -> Factorization:
        """``down = R·Q``, ``up = Qᵀ`` for each stage; never more stages than rank."""
        terms: list[Term] = []
        residual, found = self.projection.weight, self.projection
        for stage_rank in split_rank(rank, self.stages):
            if terms:
                residual = residual - terms[-1].product()
                found = project(residual, self.root)
            basis = found.basis(stage_rank)
            terms.append(Term.rounded(residual @ basis, basis.T, self.weight.dtype, storage))
        bias = None if self.mean is None else self.mean @ (residual - terms[-1].product())
        return Factorization(
            tuple(terms) if self.layout == "branches" else (Term.merged(terms),), bias
        )


def split_rank(rank: int, stages: int) -> list[int]:
    """Split ``rank`` into at most ``stages`` positive parts that differ by at most one."""
    stages = min(stages, rank)
    return [rank // stages + (stage < rank % stages) for stage in range(stages)]
