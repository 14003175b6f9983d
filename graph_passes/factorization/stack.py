"""Stacks of matrices, such as the weights [E, K, N] of E experts: each is factored on its own.

All get the same rank r, so that the factors are stacks again, down [E, K, r] and up [E, r, N]. With
``energy_i·tail_i(r)`` the squared error of matrix i, that of the stack is ``Σ s_i·energy_i·tail_i``
with

* s_i = 1 in the metric of the weights, and in that of the model's outputs, where damages add up;
* s_i = n_i / Σ n for errors that are means over the n_i rows that matrix i multiplies.

A matrix about which nothing is known, as no row reached it, costs nothing at any rank, s_i = 0: it
is factored by plain SVD, which is the least change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compress_onnx.graph_passes.arrays import Array, Float64
from compress_onnx.graph_passes.factorization.activations import ActivationStats, Known
from compress_onnx.graph_passes.factorization.base import (
    Decomposition,
    ErrorMetric,
    Factorization,
    Method,
    Term,
)
from compress_onnx.graph_passes.factorization.storage import Storage
from compress_onnx.graph_passes.factorization.svd import SVD


@dataclass(frozen=True)
class StackDecomposition:
    """The decompositions of all matrices of a stack.

    Attributes:
        leading: the stack's shape, without the last two axes.
        parts: one for each matrix, in order.
        shares: ``[matrices]`` s_i.
    """

    leading: tuple[int, ...]
    parts: Sequence[Decomposition]
    shares: Float64

    @property
    def tail(self) -> Float64:
        """``[q + 1]`` squared error of the stack at each rank, relative to rank 0."""
        tails: Float64 = np.stack([part.tail for part in self.parts])
        energies = self._energies
        total = energies.sum()
        return np.zeros(tails.shape[1]) if total == 0 else energies @ tails / total

    @property
    def energy(self) -> float:
        """The squared error at rank 0."""
        return float(self._energies.sum())

    @property
    def _energies(self) -> Float64:
        energies: Float64 = np.array([part.energy for part in self.parts])
        return self.shares * energies

    def nested(self, limit: int) -> StackDecomposition | None:
        """The same for ranks up to ``limit``, without the metrics of the matrices."""
        parts = [part.nested(limit) for part in self.parts]
        nested = [part for part in parts if part is not None]
        if len(nested) < len(parts):
            return None
        return StackDecomposition(self.leading, nested, self.shares)

    def factorize(self, rank: int, storage: Storage = "same") -> Factorization:
        """Factors [.., K, r] and [.., r, N], a pair for each term that the method makes."""
        factorizations = [part.factorize(rank, storage) for part in self.parts]
        terms = zip(*(factorization.terms for factorization in factorizations), strict=True)
        return Factorization(
            tuple(Term.stacked(same, self.leading) for same in terms),
            self._biases([factorization.bias for factorization in factorizations]),
        )

    def _biases(self, corrections: Sequence[Float64 | None]) -> Float64 | None:
        """``[.., N]``; zero for a matrix that needs none."""
        known = [correction for correction in corrections if correction is not None]
        if not known:
            return None
        none = np.zeros_like(known[0])
        stacked = np.stack([none if c is None else c for c in corrections])
        return stacked.reshape(*self.leading, -1)


def decompose(method: Method, weight: Array, known: Known) -> Decomposition:
    """Decompose a weight [K, N], or each matrix of a stack [.., K, N] with its own statistics.

    Args:
        method: how; for a matrix of a stack that it knows too little about, ``svd`` instead.
        weight: ``[.., K, N]``.
        known: for each matrix.

    Raises:
        ValueError: as :meth:`Method.decompose`; too little is known about every matrix, or there
            are not as many statistics as matrices.
    """
    if weight.ndim == 2:
        (stats,) = known
        return method.decompose(weight, stats)
    if not any(knows_enough(method, stats) for stats in known):
        raise ValueError("nothing is known about any matrix of the stack")
    parts = [
        (method if knows_enough(method, stats) else SVD()).decompose(matrix, stats)
        for matrix, stats in zip(weight.reshape(-1, *weight.shape[-2:]), known, strict=True)
    ]
    return StackDecomposition(weight.shape[:-2], parts, _shares(method.metric, known))


def knows_enough(method: Method, stats: ActivationStats | None) -> bool:
    """Whether ``stats`` are all that ``method`` needs."""
    if stats is None:
        return not method.needs_activations
    return not method.needs_gradients or stats.gradients is not None


def row_shares(known: Known) -> Float64:
    """``[matrices]`` the share of all rows that each matrix multiplies."""
    rows: Float64 = np.array([0 if s is None else s.count for s in known], np.float64)
    shares: Float64 = rows / rows.sum()
    return shares


def _shares(metric: ErrorMetric, known: Known) -> Float64:
    if metric == "weight":
        return np.ones(len(known))
    if metric == "output":
        return np.array([float(s is not None and s.gradients is not None) for s in known])
    return row_shares(known)
