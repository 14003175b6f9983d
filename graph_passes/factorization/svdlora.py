"""SVDLoRA: N stages, each the truncated SVD of what the earlier stages left over.

With exact stages the sum equals one truncated SVD of the summed rank: stage i takes singular
triplets that the earlier ones left untouched (Eckart-Young). Stages can only differ from that where
something non-linear stands between them. Here this is the rounding of the stored factors
(:mod:`~graph_passes.factorization.storage`): with ``R_0 = W``, a stage factors what is really left,
``R_i = R_{i-1} − round(down_i)·round(up_i)``, so that later stages also repair the rounding of the
earlier ones. That is worth more the coarser the storage is, and nothing for float32.

Layouts: ``merged`` concatenates the factors (two MatMuls, stages cost nothing at run time);
``branches`` keeps one chain a stage, summed, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as options

from graph_passes.factorization.activations import ActivationStats
from graph_passes.factorization.base import Array, Factorization, Float64, Metric, Term
from graph_passes.factorization.projection import Projection, project
from graph_passes.factorization.storage import Storage


@dataclass(frozen=True)
class StagedWeight:
    """A weight, its first decomposition, and how many stages to build from it."""

    weight: Array
    first: Projection
    stages: int
    layout: Literal["merged", "branches"]

    @property
    def tail(self) -> Float64:
        """``[q + 1]`` squared error at each summed rank, as for one truncated SVD."""
        return self.first.tail

    @property
    def energy(self) -> float:
        """The squared error at rank 0."""
        return self.first.energy

    def factorize(self, rank: int, storage: Storage = "same") -> Factorization:
        """Stages of nearly equal rank that sum to ``rank``; never more stages than rank."""
        residual = self.weight.astype(np.float64)
        terms: list[Term] = []
        for stage_rank in split_rank(rank, self.stages):
            basis = (project(residual) if terms else self.first).basis(stage_rank)
            terms.append(Term.rounded(residual @ basis, basis.T, self.weight.dtype, storage))
            residual = residual - terms[-1].product()
        return Factorization(tuple(terms) if self.layout == "branches" else (Term.merged(terms),))


@options(frozen=True, config=ConfigDict(extra="forbid"))
class SVDLoRA:
    """svdlora: several stages of SVD, each on the residual of the earlier ones.

    Attributes:
        stages: number of sub-matrices; they share the rank evenly.
        layout: ``merged`` (one chain) or ``branches`` (one chain a stage, summed).
    """

    metric: ClassVar[Metric] = "weight"
    needs_activations: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    corrects_bias: ClassVar[bool] = False

    stages: Annotated[int, Field(ge=1, le=64)] = 3
    layout: Literal["merged", "branches"] = "merged"

    def decompose(self, weight: Array, stats: ActivationStats | None) -> StagedWeight:  # noqa: ARG002
        """Decompose ``weight`` [K, N]; ``stats`` are not used."""
        return StagedWeight(weight, project(weight), self.stages, self.layout)


def split_rank(rank: int, stages: int) -> list[int]:
    """Split ``rank`` into at most ``stages`` positive parts that differ by at most one."""
    stages = min(stages, rank)
    return [rank // stages + (stage < rank % stages) for stage in range(stages)]
