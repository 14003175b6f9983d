"""Weights of few bits in blocks, and low-rank factors of what rounding leaves over.

W [K, N] is cut along K into blocks of rows. Each block of each column has a scale s of its own::

    W ≈ s·(Q − z) + A·B      Q [K, N] of 0 … 2^bits − 1,  z = 2^(bits − 1),  A [K, r],  B [r, N]

What is lost is ``tr(G ΔᵀCΔ)`` for the difference Δ [K, N]: C [K, K] is the covariance of the
layer's inputs and G [N, N] the moment of the gradients at its output, where these are known
(:mod:`~graph_passes.factorization.gauss_newton`). A weight becomes integers in three steps:

1. Scales by diag(C): of some that clip the largest number more or less, with either sign, because
   the integers reach further below z than above.
2. Integers by error feedback (GPTQ, Frantar et al. 2023): what rounding one row does to the outputs
   is made up for by the rows that are not rounded yet, as far as C lets it (:class:`Feedback`).
3. Scales again: with the integers as they are, the best scales solve a least-squares problem.

Steps 2 and 3 are done again while that lowers the damage. Then, for a residual, ``W − s(Q − z)`` is
factored in the metric of C and G, ``W − A·B`` is rounded, and so on in turn; what is kept is the
best of all turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from compress_onnx.graph_passes.arrays import Array, Float32, Float64, Indices
from compress_onnx.graph_passes.factorization.activations import ActivationStats
from compress_onnx.graph_passes.factorization.asvd import ASVD
from compress_onnx.graph_passes.factorization.base import Method, Term
from compress_onnx.graph_passes.factorization.gauss_newton import GaussNewton, damped_half
from compress_onnx.graph_passes.factorization.storage import Packed, Storage
from compress_onnx.graph_passes.factorization.svd import SVD

Bits = Literal[4, 8]

BLOCK = 32
"""Rows that share a scale."""

_CLIPPING = {4: np.linspace(8 / 7, 0.6, 13), 8: np.linspace(128 / 127, 0.9, 5)}
"""Step 1: the number that the furthest integer stands for, in parts of the largest there is."""
_DAMPING = 0.01
_SWEEPS = 3
_TOGETHER = 128
"""Rows whose errors reach the rows behind them in one product."""


@dataclass(frozen=True)
class BlockWeight:
    """Integers in blocks.

    Attributes:
        numbers: ``[K, N]`` of 0 … 2^bits − 1.
        scale: ``[ceil(K / BLOCK), N]``; numbers of float16, unless that cannot hold them.
        bits: of a number.
    """

    numbers: NDArray[np.uint8]
    scale: Float32
    bits: Bits

    @property
    def zero_point(self) -> int:
        """The integer that stands for zero."""
        return 1 << (self.bits - 1)

    @property
    def stored_scale(self) -> Packed | None:
        """How a file holds the scale in half of the bytes; None where it cannot."""
        with np.errstate(over="ignore"):
            short = self.scale.astype(np.float16)
        exact = bool((short.astype(np.float32) == self.scale).all())
        return Packed("float16", short) if exact else None

    def values(self) -> Float32:
        """``[K, N]`` the numbers that a graph computes with."""
        signed = self.numbers.astype(np.float64) - self.zero_point
        return (signed * _by_row(self.scale, len(signed))).astype(np.float32)


@dataclass(frozen=True)
class WeightOnly:
    """What stands for a weight.

    Attributes:
        base: its integers.
        residual: factors that are added to it; None for none.
        bias: ``[N]`` what the bias is corrected by, so that the mean output stays; None without
            statistics.
        damage: ``tr(G ΔᵀCΔ)``; the squared norm of Δ without statistics.
    """

    base: BlockWeight
    residual: Term | None
    bias: Float64 | None
    damage: float

    @property
    def stored_bytes(self) -> int:
        """What integers, scales and factors take in the file."""
        base = self.base
        scale_bytes = base.scale.size * (2 if base.stored_scale else 4)
        found = math.ceil(base.numbers.size * base.bits / 8) + scale_bytes
        if self.residual is None:
            return found
        packed = self.residual.packed
        factors = (self.residual.down, self.residual.up) if packed is None else packed
        return found + sum(factor.nbytes for factor in factors)


def round_weight_only(
    weight: Array,
    stats: ActivationStats | None,
    bits: Bits = 4,
    *,
    rank: int = 0,
    storage: Storage = "float16",
    turns: int = 3,
) -> WeightOnly:
    """Round ``weight`` [K, N] with the least damage.

    Args:
        weight: finite.
        stats: of the layer's inputs, and of its gradients if these are known; None minds the
            weight alone.
        bits: of a number.
        rank: of the residual; 0 for none.
        storage: how the file holds the factors of the residual.
        turns: how often integers and factors are made at most.

    Raises:
        RequestError: the storage cannot hold the factors.
    """
    exact = weight.astype(np.float64)
    moment, outer = _metrics(stats)
    method: Method = SVD() if stats is None else ASVD()
    if stats is not None and stats.gradients is not None:
        method = GaussNewton()
    best: WeightOnly | None = None
    term: Term | None = None
    for _ in range(turns if rank else 1):
        base = round_blocks(exact if term is None else exact - term.product(), moment, bits)
        left = exact - base.values()
        if rank:
            found = method.decompose(left.astype(weight.dtype), stats)
            term = found.factorize(min(rank, *weight.shape), storage).terms[0]
            left = left - term.product()
        lost = damage(left, moment, outer)
        if best is not None and lost >= best.damage:
            break
        bias = None if stats is None else _mean(stats) @ left
        best = WeightOnly(base, term, bias, lost)
    assert best is not None
    return best


def damage(difference: Float64, moment: Float64 | None, outer: Float64 | None = None) -> float:
    """``tr(G ΔᵀCΔ)`` of ``difference`` [K, N]; None is the identity.

    Args:
        difference: Δ.
        moment: ``[K, K]`` C.
        outer: ``[N, N]`` G.
    """
    seen = difference if moment is None else moment @ difference
    product = difference if outer is None else difference @ outer
    return max(float(np.vdot(product, seen)), 0.0)


def round_blocks(weight: Float64, moment: Float64 | None, bits: Bits = 4) -> BlockWeight:
    """Integers and scales of ``weight`` [K, N] that lose little in the metric of ``moment``.

    Args:
        weight: finite.
        moment: ``[K, K]`` C; None for the identity, in which nothing is better than the nearest.
        bits: of a number.
    """
    best = round_to_nearest(weight, None if moment is None else np.diag(moment), bits)
    if moment is None:
        return best
    feedback, found = Feedback.of(moment), best
    least = damage(weight - best.values(), moment)
    for _ in range(_SWEEPS):
        found = _fed_back(feedback, weight, found)
        found = BlockWeight(found.numbers, _refitted(weight, moment, found), bits)
        lost = damage(weight - found.values(), moment)
        if lost >= least:
            break
        best, least = found, lost
    return best


def round_to_nearest(weight: Float64, importance: Float64 | None, bits: Bits = 4) -> BlockWeight:
    """Each number of ``weight`` [K, N] the nearest integer; scales by ``importance`` [K] of rows.

    Args:
        weight: finite.
        importance: diag(C); None for the same everywhere.
        bits: of a number.
    """
    rows, columns = weight.shape
    blocks = -(-rows // BLOCK)
    padded = np.zeros((blocks * BLOCK, columns))
    padded[:rows] = weight
    shares = np.ones(len(padded))
    if importance is not None:
        # Rows that never vary keep a little: they may on other data.
        shares[:rows] = importance + 1e-3 * importance.mean() + np.finfo(np.float64).tiny
    cut = padded.reshape(blocks, BLOCK, columns)
    minded = shares.reshape(blocks, BLOCK, 1)
    furthest = np.take_along_axis(cut, np.abs(cut).argmax(axis=1)[:, None], axis=1)[:, 0]
    half = 1 << (bits - 1)
    least = np.full((blocks, columns), np.inf)
    scale = np.ones((blocks, columns), np.float32)
    for part in (*_CLIPPING[bits], *-_CLIPPING[bits]):
        step = _as_stored(-part * furthest / half)
        exact = step.astype(np.float64)[:, None]
        integers = np.clip(np.rint(cut / exact), -half, half - 1)
        lost = (minded * np.square(cut - integers * exact)).sum(axis=1)
        scale, least = np.where(lost < least, step, scale), np.minimum(lost, least)
    return BlockWeight(_integers(weight, scale, bits), scale, bits)


def round_with(weight: Array, scale: Float32, bits: Bits) -> BlockWeight:
    """The nearest integers of ``weight`` [K, N] for the scales ``scale`` [blocks, N]."""
    return BlockWeight(_integers(weight.astype(np.float64), scale, bits), scale, bits)


@dataclass(frozen=True)
class Feedback:
    """How rows that are yet to be rounded make up for the errors of earlier ones.

    With ``H = C + damping`` and U upper triangular in ``H⁻¹ = UᵀU``, the best that the rows behind
    row i can do about its error e_i is to change by ``−U_ij / U_ii · e_i``.

    Attributes:
        order: ``[K]`` in which rows are rounded. Those that vary most go first, while many are left
            to make up for them.
        upper: ``[K, K]`` U, its rows and columns in that order.
    """

    order: Indices
    upper: Float64

    @classmethod
    def of(cls, moment: Float64, damping: float = _DAMPING) -> Feedback:
        """For inputs of covariance ``moment`` [K, K], damped by parts of its mean eigenvalue."""
        order: Indices = np.argsort(-np.diag(moment), kind="stable")
        backwards = order[::-1]
        # H = V·Vᵀ with V upper triangular, from the lower factor of H read backwards.
        half = damped_half(moment[np.ix_(backwards, backwards)], damping)[::-1, ::-1]
        return cls(order, linalg.solve_triangular(half, np.eye(len(order)), lower=False))

    def round(self, weight: Float64, round_row: Callable[[int, Float64], Float64]) -> Float64:
        """``[K, N]`` the rounded values of ``weight`` [K, N].

        Args:
            weight: what to round.
            round_row: given the index of a row and what it has become, ``[N]``, its rounded values.
        """
        rows, upper = len(weight), self.upper
        left = weight[self.order]
        rounded = np.empty_like(weight)
        for start in range(0, rows, _TOGETHER):
            stop = min(start + _TOGETHER, rows)
            errors = np.empty((stop - start, weight.shape[1]))
            for row in range(start, stop):
                index = int(self.order[row])
                rounded[index] = round_row(index, left[row])
                errors[row - start] = (left[row] - rounded[index]) / upper[row, row]
                left[row + 1 : stop] -= np.outer(upper[row, row + 1 : stop], errors[row - start])
            left[stop:] -= upper[start:stop, stop:].T @ errors
        return rounded


def _fed_back(feedback: Feedback, weight: Float64, nearest: BlockWeight) -> BlockWeight:
    """Integers by error feedback, with scales as they are."""
    half, steps = nearest.zero_point, nearest.scale.astype(np.float64)
    numbers = np.empty(weight.shape, np.uint8)

    def round_row(index: int, row: Float64) -> Float64:
        step: Float64 = steps[index // BLOCK]
        integers = np.clip(np.rint(row / step), -half, half - 1)
        numbers[index] = integers + half
        return integers * step

    feedback.round(weight, round_row)
    return BlockWeight(numbers, nearest.scale, nearest.bits)


def _refitted(weight: Float64, moment: Float64, found: BlockWeight) -> Float32:
    """``[blocks, N]`` the scales that lose least with these integers.

    With D_n [K, blocks] the integers of column n, each in the column of its block, they solve
    ``D_nᵀ C D_n s_n = D_nᵀ C w_n``.
    """
    rows, columns = weight.shape
    starts = np.arange(0, rows, BLOCK)
    signed = found.numbers.astype(np.float64) - found.zero_point
    off = moment @ (weight - signed * _by_row(found.scale, rows))
    target = np.add.reduceat(signed * off, starts, axis=0)  # [blocks, N]
    normal = np.empty((columns, len(starts), len(starts)))
    for block, start in enumerate(starts):
        seen = moment[:, start : start + BLOCK] @ signed[start : start + BLOCK]  # [K, N]
        normal[:, :, block] = np.add.reduceat(signed * seen, starts, axis=0).T
    ridge = 1e-4 * np.trace(normal, axis1=1, axis2=2) / len(starts) + np.finfo(np.float64).tiny
    normal += ridge[:, None, None] * np.eye(len(starts))
    change = np.linalg.solve(normal, target.T[:, :, None])[:, :, 0].T
    return _as_stored(found.scale.astype(np.float64) + change)


def _integers(weight: Float64, scale: Float32, bits: Bits) -> NDArray[np.uint8]:
    half = 1 << (bits - 1)
    exact = np.rint(weight / _by_row(scale, len(weight)))
    numbers: NDArray[np.uint8] = (np.clip(exact, -half, half - 1) + half).astype(np.uint8)
    return numbers


def _by_row(scale: Float32, rows: int) -> Float64:
    """``[K, N]`` of ``scale`` [blocks, N]."""
    return np.repeat(scale.astype(np.float64), BLOCK, axis=0)[:rows]


def _as_stored(scale: Float64) -> Float32:
    """``scale`` as numbers of float16 where all of them are in its range, else of float32.

    None is zero: a block of zeros has any scale.
    """
    tiny = np.finfo(np.float32).tiny
    exact = np.where(np.abs(scale) < tiny, 1.0, scale).astype(np.float32)
    size, half = np.abs(exact), np.finfo(np.float16)
    if size.min() < half.tiny or size.max() > half.max:
        return exact
    return exact.astype(np.float16).astype(np.float32)


def _metrics(stats: ActivationStats | None) -> tuple[Float64 | None, Float64 | None]:
    """C and G."""
    if stats is None:
        return None, None
    if stats.gradients is None:
        return stats.covariance, None
    return stats.gradients.inputs.covariance, stats.gradients.moment


def _mean(stats: ActivationStats) -> Float64:
    return stats.mean if stats.gradients is None else stats.gradients.inputs.mean
