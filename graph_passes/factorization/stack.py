"""Stacks of matrices, such as the weights [E, K, N] of E experts: each is factored on its own.

All get the same rank r, so that the factors are stacks again, down [E, K, r] and up [E, r, N]. With
e_i(r) the squared error of matrix i and w_i its energy ``‖W_i‖²``, the stack's error is
``Σ w_i·e_i(r) / Σ w_i``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graph_passes.factorization.activations import ActivationStats
from graph_passes.factorization.base import (
    Array,
    Decomposition,
    Factorization,
    Float64,
    Method,
    Term,
)
from graph_passes.factorization.storage import Storage


@dataclass(frozen=True)
class StackDecomposition:
    """The decompositions of all matrices of a stack.

    Attributes:
        leading: the stack's shape, without the last two axes.
        parts: one for each matrix, in order.
        energies: ``[matrices]`` their squared norms.
    """

    leading: tuple[int, ...]
    parts: Sequence[Decomposition]
    energies: Float64

    @property
    def tail(self) -> Float64:
        """``[q + 1]`` squared error of the stack at each rank, relative to rank 0."""
        tails: Float64 = np.stack([part.tail for part in self.parts])
        total = self.energies.sum()
        return np.zeros(tails.shape[1]) if total == 0 else self.energies @ tails / total

    @property
    def energy(self) -> float:
        """The squared error at rank 0."""
        return float(sum(part.energy for part in self.parts))

    def factorize(self, rank: int, storage: Storage = "same") -> Factorization:
        """Factors [.., K, r] and [.., r, N], a pair for each term that the method makes."""
        factorizations = [part.factorize(rank, storage) for part in self.parts]
        terms = zip(*(factorization.terms for factorization in factorizations), strict=True)
        return Factorization(tuple(Term.stacked(same, self.leading) for same in terms))


def decompose(method: Method, weight: Array, stats: ActivationStats | None) -> Decomposition:
    """Decompose a weight [K, N], or each matrix of a stack [.., K, N].

    Raises:
        ValueError: as :meth:`Method.decompose`, or a method that looks at activations gets a stack.
    """
    if weight.ndim == 2:
        return method.decompose(weight, stats)
    if method.needs_activations:
        raise ValueError("the activations of a stack are not known matrix by matrix")
    matrices = weight.reshape(-1, *weight.shape[-2:])
    energies = np.array([np.vdot(m, m) for m in matrices.astype(np.float64)])
    return StackDecomposition(
        weight.shape[:-2], [method.decompose(matrix, None) for matrix in matrices], energies
    )
