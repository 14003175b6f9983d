"""Plain truncated SVD: the least error in the weights themselves (Eckart-Young)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as options

from graph_passes.factorization.activations import ActivationStats
from graph_passes.factorization.base import Array, Factorization, Float64, Metric, Term
from graph_passes.factorization.projection import Projection, project
from graph_passes.factorization.storage import Storage


@dataclass(frozen=True)
class ProjectedWeight:
    """A weight with its nested optimal subspaces; ``mean`` [K] asks for a bias correction.

    With the site's mean input μ, ``b' = b + μ·(W − down·up)`` keeps the mean output exact.
    """

    weight: Array
    projection: Projection
    mean: Float64 | None = None

    @property
    def tail(self) -> Float64:
        """``[q + 1]`` squared error at each rank, relative to rank 0."""
        return self.projection.tail

    @property
    def energy(self) -> float:
        """The squared error at rank 0."""
        return self.projection.energy

    def factorize(self, rank: int, storage: Storage = "same") -> Factorization:
        """``down = W·Q``, ``up = Qᵀ`` at ``rank``."""
        exact = self.projection.weight
        basis = self.projection.basis(rank)
        term = Term.rounded(exact @ basis, basis.T, self.weight.dtype, storage)
        bias = None if self.mean is None else self.mean @ (exact - term.product())
        return Factorization((term,), bias)


@options(frozen=True, config=ConfigDict(extra="forbid"))
class SVD:
    """svd: truncated SVD of the weight; needs no data."""

    metric: ClassVar[Metric] = "weight"
    needs_activations: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    corrects_bias: ClassVar[bool] = False

    def decompose(self, weight: Array, stats: ActivationStats | None) -> ProjectedWeight:  # noqa: ARG002
        """Decompose ``weight`` [K, N]; ``stats`` are not used."""
        return ProjectedWeight(weight, project(weight))
