"""What a factorization is, and what a method must offer.

``W [K, N] ≈ Σ_i down_i · up_i`` with down_i [K, r_i] and up_i [r_i, N]; one term for a plain
factorization, one for each stage of SVDLoRA in the ``branches`` layout. It costs Σ r_i·(K + N)
parameters instead of K·N.

A method is built from hyper-parameters, gets its data in :meth:`Method.decompose`, and answers for
every rank from that one decomposition. Factors come back in the weight's own dtype, because that
is what the graph will hold and what errors must be measured with; all arithmetic is float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from graph_passes.factorization.activations import ActivationStats

Array = NDArray[np.generic]
Float64 = NDArray[np.float64]
Metric = Literal["weight", "activation", "scaled", "output"]


@dataclass(frozen=True)
class Term:
    """One chain ``down [.., K, r] · up [.., r, N]``, both in the dtype that the graph stores."""

    down: Array
    up: Array

    @property
    def rank(self) -> int:
        """The inner dimension r."""
        return int(self.down.shape[-1])

    def product(self) -> Float64:
        """``[.., K, N]`` the product of the stored factors, in float64."""
        return self.down.astype(np.float64) @ self.up.astype(np.float64)


@dataclass(frozen=True)
class Factorization:
    """A sum of terms, and the bias correction ``[N]`` that goes with it (None: none needed)."""

    terms: tuple[Term, ...]
    bias: Float64 | None = None

    @property
    def rank(self) -> int:
        """The summed rank of all terms."""
        return sum(term.rank for term in self.terms)

    def product(self) -> Float64:
        """``[.., K, N]`` the weight that the factors stand for, in float64."""
        total = self.terms[0].product()
        for term in self.terms[1:]:
            total += term.product()
        return total


class Decomposition(Protocol):
    """A weight taken apart once, to be put together at any rank."""

    @property
    def tail(self) -> Float64:
        """``[q + 1]`` squared error at each rank in the method's metric, relative to rank 0."""

    @property
    def energy(self) -> float:
        """The squared error at rank 0, in the method's metric."""

    def factorize(self, rank: int) -> Factorization:
        """Factors of ``rank`` (1 … min(K, N))."""


class Method(Protocol):
    """A factorization method; a frozen dataclass of its hyper-parameters.

    Attributes:
        metric: in which its error is the least possible: of the weight, of the site's outputs
            (activation), of the model's outputs (output), or in another scaling.
        needs_activations: whether :meth:`decompose` needs statistics.
        needs_gradients: whether these must include gradients.
        corrects_bias: whether its factorizations carry a bias correction.
    """

    metric: ClassVar[Metric]
    needs_activations: ClassVar[bool]
    needs_gradients: ClassVar[bool]
    corrects_bias: ClassVar[bool]

    def decompose(self, weight: Array, stats: ActivationStats | None) -> Decomposition:
        """Take ``weight`` [K, N] apart.

        Raises:
            ValueError: the method needs statistics and got none, or shapes do not agree.
        """
