"""Reference against candidate, one output at a time, in float64, without keeping the arrays.

With reference r, candidate c and e = c − r, five figures over all compared elements are enough:

    max |e|    ‖e‖²    ‖r‖²    ‖c‖²    r·c

    relative L2 = ‖e‖ / ‖r‖      cosine = r·c / (‖r‖ ‖c‖)      SNR = −20·log10(relative L2)

Of ‖e‖² and ‖r‖² each sample's part is kept, because relative L2² is the ratio of their means: its
95 % interval over samples like these is that of a ratio estimator (Cochran 1977, "Sampling
Techniques", 6.3), with the residuals d_i = ‖e_i‖² − relative L2²·‖r_i‖² of n samples::

    relative L2² ± z·sqrt(Σ d_i² · n / (n − 1)) / ‖r‖²

A pair that cannot be compared (another shape or kind of dtype, or NaN and infinity where the
other model has something else) is the worst possible result: infinite error, cosine 0, SNR −∞.
NaN never comes out. Positions where both are NaN, or the same infinity, agree and are left out.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.measure.tolerance import Tolerance
from compress_onnx.pipeline.results import OutputComparison
from compress_onnx.pipeline.runtime.padding import by_position

logger = logging.getLogger(__name__)

_CHUNK_ELEMENTS = 1 << 20


class OutputComparator:
    """Accumulates one output of both models, batch by batch.

    Args:
        tolerance: counts the elements that are farther off; None counts nothing.
    """

    def __init__(self, tolerance: Tolerance | None = None) -> None:
        self._tolerance, self._outside = tolerance, 0
        self._elements = 0
        self._max_abs = 0.0
        self._errors: list[float] = []
        self._references: list[float] = []
        self._candidate = 0.0
        self._dot = 0.0
        self._problem: str | None = None

    def update(
        self, reference: Array, candidate: Array, mask: NDArray[np.bool_] | None = None
    ) -> None:
        """Add one batch.

        Args:
            reference: ``[B, ...]`` numbers or booleans.
            candidate: the same shape and kind of dtype, or the comparison fails.
            mask: ``[B, T]``; arrays ``[B, T, ...]`` or ``[B·T, ...]`` are compared only where it
                is True. Arrays of another leading shape are compared whole.

        Raises:
            DataError: the arrays hold neither numbers nor booleans.
        """
        self._problem = self._problem or _mismatch(reference, candidate)
        if self._problem is not None:
            return
        if mask is not None:
            ours, theirs = by_position(reference, mask), by_position(candidate, mask)
            if ours is None or theirs is None:
                mask = None
            else:
                reference, candidate = ours, theirs
        # A product that overflows float64 makes a sum infinite, which result() turns into failure.
        with np.errstate(over="ignore", invalid="ignore"):
            for before, after in _samples(reference, candidate, mask):
                self._errors.append(0.0)
                self._references.append(0.0)
                for r, c in _float64_chunks(before, after):
                    self._accumulate(r, c)

    def _accumulate(self, r: NDArray[np.float64], c: NDArray[np.float64]) -> None:
        finite = np.isfinite(r) & np.isfinite(c)
        if not finite.all():
            if not np.array_equal(r[~finite], c[~finite], equal_nan=True):
                self._problem = "NaN or infinity where the other model has something else"
            r, c = r[finite], c[finite]
        error = c - r
        self._elements += r.size
        self._max_abs = max(self._max_abs, float(np.abs(error).max(initial=0.0)))
        if self._tolerance is not None:
            allowed = self._tolerance.atol + self._tolerance.rtol * np.abs(r)
            self._outside += int(np.count_nonzero(np.abs(error) > allowed))
        self._errors[-1] += float(error @ error)
        self._references[-1] += float(r @ r)
        self._candidate += float(c @ c)
        self._dot += float(r @ c)

    def result(self, output: str) -> OutputComparison:
        """The comparison so far, named ``output``.

        Raises:
            DataError: there was nothing to compare.
        """
        error, reference = sum(self._errors), sum(self._references)
        sums = (error, reference, self._candidate, self._dot)
        problem = self._problem or (
            None if np.isfinite(sums).all() else "too large to square in float64"
        )
        if problem is not None:
            logger.warning("output %s cannot be compared: %s", output, problem)
            return OutputComparison(
                output=output,
                elements=self._elements,
                max_abs=math.inf,
                relative_l2=math.inf,
                cosine=0.0,
                snr_db=-math.inf,
                problem=problem,
                outside=None if self._tolerance is None else max(self._outside, 1),
            )
        if not self._elements:
            raise DataError(
                f"output {output!r}: no element could be compared, and comparing nothing is a "
                "failure: give samples that are not all padding, and a reference without NaN"
            )
        relative_l2 = _relative_l2(error, reference)
        low, high = _interval(np.array(self._errors), np.array(self._references))
        return OutputComparison(
            output=output,
            elements=self._elements,
            max_abs=self._max_abs,
            relative_l2=relative_l2,
            relative_l2_low=low,
            relative_l2_high=high,
            cosine=1.0 if error == 0.0 else self._cosine(reference),
            snr_db=-20.0 * math.log10(relative_l2) if relative_l2 else None,
            outside=None if self._tolerance is None else self._outside,
        )

    def _cosine(self, reference: float) -> float:
        norms = math.sqrt(reference) * math.sqrt(self._candidate)
        return min(1.0, max(-1.0, self._dot / norms)) if norms else 0.0


def _relative_l2(error: float, reference: float) -> float:
    if error == 0.0:
        return 0.0
    return math.sqrt(error / reference) if reference else math.inf


def _interval(
    errors: NDArray[np.float64], references: NDArray[np.float64]
) -> tuple[float, float] | tuple[None, None]:
    """The interval of the module's docstring; None where one sample, or zeros, tell nothing."""
    count, reference = len(errors), references.sum()
    if count < 2 or not reference:
        return None, None
    ratio = errors.sum() / reference
    residuals = errors - ratio * references
    margin = (
        float(norm.ppf(0.975)) * math.sqrt(residuals @ residuals * count / (count - 1)) / reference
    )
    return math.sqrt(max(ratio - margin, 0.0)), math.sqrt(ratio + margin)


def _samples(
    reference: Array, candidate: Array, mask: NDArray[np.bool_] | None
) -> Iterator[tuple[Array, Array]]:
    """Both outputs, sample by sample along the first axis; a scalar is one sample."""
    if reference.ndim == 0:
        yield reference, candidate
        return
    for index in range(len(reference)):
        real = ... if mask is None else mask[index]
        yield reference[index, real], candidate[index, real]


def _mismatch(reference: Array, candidate: Array) -> str | None:
    for array in (reference, candidate):
        if array.dtype.kind not in "fiub":
            raise DataError(f"outputs of dtype {array.dtype} cannot be compared, only numbers can")
    if reference.shape != candidate.shape:
        return f"shape {list(candidate.shape)} instead of {list(reference.shape)}"
    if reference.dtype.kind != candidate.dtype.kind:
        return f"dtype {candidate.dtype} instead of {reference.dtype}"
    return None


def _float64_chunks(
    reference: Array, candidate: Array
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    # Logits over a vocabulary are huge: never hold a whole batch of them in float64.
    flat = reference.reshape(-1), candidate.reshape(-1)
    for start in range(0, flat[0].size, _CHUNK_ELEMENTS):
        chunk = slice(start, start + _CHUNK_ELEMENTS)
        yield flat[0][chunk].astype(np.float64), flat[1][chunk].astype(np.float64)
