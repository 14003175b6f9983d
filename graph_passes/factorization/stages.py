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

import numpy as np
from pydantic import Field
from scipy import linalg

from compress_onnx.graph_passes.arrays import Array, Float64
from compress_onnx.graph_passes.factorization.balance import equal_norms
from compress_onnx.graph_passes.factorization.base import Factorization, Term
from compress_onnx.graph_passes.factorization.nested import NestedFactors
from compress_onnx.graph_passes.factorization.projection import Projection, project
from compress_onnx.graph_passes.factorization.storage import Storage

Layout = Literal["merged", "branches"]
Stages = Annotated[int, Field(ge=1, le=64)]


@dataclass(frozen=True)
class ProjectedWeight:
    """A weight with its nested optimal subspaces, and how many stages to build from it.

    Attributes:
        weight: ``[K, N]`` W.
        projection: subspaces of W, or of W·H where there is a ``half``.
        metric: C of the inputs, to project once more; None for the identity.
        mean: ``[K]`` of the site's inputs μ, which asks for the bias correction
            ``b' = b + μ·(W − Σ down·up)``; it keeps the mean output exact.
        stages: how many; they share the rank evenly.
        layout: ``merged`` or ``branches``.
        half: ``[N, N]`` lower triangle H of the metric ``H Hᵀ`` of the outputs; None for the
            identity.
    """

    weight: Array
    projection: Projection
    metric: Float64 | None = None
    mean: Float64 | None = None
    stages: int = 1
    layout: Layout = "merged"
    half: Float64 | None = None

    @property
    def tail(self) -> Float64:
        """``[q + 1]`` squared error at each summed rank without rounding, relative to rank 0."""
        return self.projection.tail

    @property
    def energy(self) -> float:
        """The squared error at rank 0."""
        return self.projection.energy

    @property
    def parts(self) -> tuple[ProjectedWeight, ...]:
        """The decomposition of each matrix: of the only one."""
        return (self,)

    def nested(self, limit: int) -> NestedFactors | None:
        """The factors of every rank up to ``limit``; None where there are several stages."""
        if self.stages != 1:
            return None
        down, up = self._factors(self.projection, self.projection.basis(limit))
        kept = np.result_type(self.weight.dtype, np.float32)
        return NestedFactors(
            down.astype(kept),
            up.astype(kept),
            limit,
            self.tail,
            self.energy,
            self.weight.dtype,
            self.mean,
            None if self.mean is None else self.mean @ self.weight.astype(np.float64),
        )

    def factorize(self, rank: int, storage: Storage = "same") -> Factorization:
        """``down = R·Q``, ``up = Qᵀ`` for each stage; never more stages than rank.

        With a ``half``: ``down = R·H·Q``, ``up = Qᵀ·H⁻¹``, their norms balanced.
        """
        terms: list[Term] = []
        residual, found = self.weight.astype(np.float64), self.projection
        for stage_rank in split_rank(rank, self.stages):
            if terms:
                residual = residual - terms[-1].product()
                found = project(
                    residual if self.half is None else residual @ self.half, self.metric
                )
            down, up = self._factors(found, found.basis(stage_rank))
            terms.append(Term.rounded(down, up, self.weight.dtype, storage))
        bias = None if self.mean is None else self.mean @ (residual - terms[-1].product())
        return Factorization(
            tuple(terms) if self.layout == "branches" else (Term.merged(terms),), bias
        )

    def _factors(self, found: Projection, basis: Float64) -> tuple[Float64, Float64]:
        down = found.weight @ basis
        if self.half is None:
            return down, basis.T
        up = linalg.solve_triangular(self.half, basis, lower=True, trans="T").T
        return equal_norms(down, up)


def split_rank(rank: int, stages: int) -> list[int]:
    """Split ``rank`` into at most ``stages`` positive parts that differ by at most one."""
    stages = min(stages, rank)
    return [rank // stages + (stage < rank % stages) for stage in range(stages)]
