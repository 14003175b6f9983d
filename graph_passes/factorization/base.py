"""What a factorization is, and what a method must offer.

``W [K, N] ≈ Σ_i down_i · up_i`` with down_i [K, r_i] and up_i [r_i, N]; one term for a plain
factorization, one for each stage of SVDLoRA in the ``branches`` layout. It costs Σ r_i·(K + N)
parameters instead of K·N.

A method is built from hyper-parameters, gets its data in :meth:`Method.decompose`, and answers for
every rank from that one decomposition. Factors come back as the graph will compute them (in the
weight's own dtype, rounded first where the file is to hold less: :mod:`.storage`), because that is
what errors must be measured with; all arithmetic is float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np

from compress_onnx.graph_passes.arrays import Array, Float64
from compress_onnx.graph_passes.factorization.activations import ActivationStats
from compress_onnx.graph_passes.factorization.balance import within
from compress_onnx.graph_passes.factorization.storage import (
    Combine,
    Packed,
    Storage,
    combined,
    narrowest,
    pack,
    rounded,
)

ErrorMetric = Literal["weight", "activation", "scaled", "output"]


@dataclass(frozen=True)
class Term:
    """One chain ``down [.., K, r] · up [.., r, N]``, both as the graph computes them.

    ``packed`` is how the file holds ``(down, up)`` where it does not hold them as they are.
    """

    down: Array
    up: Array
    packed: tuple[Packed, Packed] | None = None

    @classmethod
    def rounded(
        cls, down: Float64, up: Float64, dtype: np.dtype[np.generic], storage: Storage
    ) -> Term:
        """Factors ``[K, r]`` and ``[r, N]`` of a weight of type ``dtype``, stored as ``storage``.

        Their scale is shared out between the two where one of them would overflow.

        Raises:
            RequestError: even then, the type cannot hold the numbers.
        """
        down, up = within(down, up, narrowest(storage, dtype))
        first, second = pack(down, storage, dtype, axis=0), pack(up, storage, dtype, axis=1)
        if first is None or second is None:
            return cls(rounded(down, dtype), rounded(np.ascontiguousarray(up), dtype))
        return cls(first.values(dtype), second.values(dtype), (first, second))

    @classmethod
    def merged(cls, terms: Sequence[Term]) -> Term:
        """``terms`` of matrices, side by side along the rank: their sum as one chain."""
        return _combined(terms, np.hstack, np.vstack)

    @classmethod
    def stacked(cls, terms: Sequence[Term], leading: tuple[int, ...]) -> Term:
        """``terms`` of equal shapes as a stack of shape ``leading``."""

        def stack(matrices: Sequence[Array]) -> Array:
            return np.stack(matrices).reshape(*leading, *matrices[0].shape)

        return _combined(terms, stack, stack)

    @property
    def rank(self) -> int:
        """The inner dimension r."""
        return int(self.down.shape[-1])

    def product(self) -> Float64:
        """``[.., K, N]`` the product of the factors, in float64."""
        return self.down.astype(np.float64) @ self.up.astype(np.float64)


def _combined(terms: Sequence[Term], downs: Combine, ups: Combine) -> Term:
    packed = [term.packed for term in terms if term.packed is not None]
    return Term(
        downs([term.down for term in terms]),
        ups([term.up for term in terms]),
        (combined([down for down, _ in packed], downs), combined([up for _, up in packed], ups))
        if packed
        else None,
    )


@dataclass(frozen=True)
class Factorization:
    """A sum of terms, and the bias correction ``[.., N]`` that goes with it (None: none needed)."""

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

    @property
    def parts(self) -> Sequence[Decomposition]:
        """The decompositions of the matrices of a stack; itself for a plain matrix."""

    def factorize(self, rank: int, storage: Storage = "same") -> Factorization:
        """Factors of ``rank`` (1 … min(K, N)), as ``storage`` keeps them.

        Raises:
            RequestError: ``storage`` cannot hold them.
        """

    def nested(self, limit: int) -> Decomposition | None:
        """The same for ranks up to ``limit``, without the metric that it was made in.

        None where the factors of a rank are not part of those of a larger one.
        """


class Method(Protocol):
    """A factorization method; a frozen dataclass of its hyper-parameters.

    Attributes:
        metric: in which its error is the least possible: of the weight, of the site's outputs
            (activation), of the model's outputs (output), or in another scaling.
        needs_activations: whether :meth:`decompose` needs statistics.
        needs_gradients: whether these must include gradients.
        corrects_bias: whether its factorizations carry a bias correction.
    """

    metric: ClassVar[ErrorMetric]
    needs_activations: ClassVar[bool]
    needs_gradients: ClassVar[bool]
    corrects_bias: ClassVar[bool]

    def decompose(self, weight: Array, stats: ActivationStats | None) -> Decomposition:
        """Take ``weight`` [K, N] apart.

        Raises:
            ValueError: the method needs statistics and got none, or shapes do not agree.
        """
