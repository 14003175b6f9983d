"""Reference against candidate, one output at a time, in float64, without keeping the arrays.

With reference r, candidate c and e = c − r, five figures over all compared elements are enough:

    max |e|    ‖e‖²    ‖r‖²    ‖c‖²    r·c

    relative L2 = ‖e‖ / ‖r‖      cosine = r·c / (‖r‖ ‖c‖)      SNR = −20·log10(relative L2)

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

from graph_passes.errors import DataError
from pipeline.data.samples import Array
from pipeline.results import OutputComparison

logger = logging.getLogger(__name__)

_CHUNK_ELEMENTS = 1 << 20


class OutputComparator:
    """Accumulates one output of both models, batch by batch."""

    def __init__(self) -> None:
        self._elements = 0
        self._max_abs = 0.0
        self._error = 0.0
        self._reference = 0.0
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
            mask: ``[B, T]``; arrays ``[B, T, ...]`` are compared only where it is True. Arrays of
                another leading shape are compared whole.

        Raises:
            DataError: the arrays hold neither numbers nor booleans.
        """
        self._problem = self._problem or _mismatch(reference, candidate)
        if self._problem is not None:
            return
        if mask is not None and reference.shape[:2] == mask.shape:
            reference, candidate = reference[mask], candidate[mask]
        # A product that overflows float64 makes a sum infinite, which result() turns into failure.
        with np.errstate(over="ignore", invalid="ignore"):
            for r, c in _float64_chunks(reference, candidate):
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
        self._error += float(error @ error)
        self._reference += float(r @ r)
        self._candidate += float(c @ c)
        self._dot += float(r @ c)

    def result(self, output: str) -> OutputComparison:
        """The comparison so far, named ``output``.

        Raises:
            DataError: there was nothing to compare.
        """
        sums = (self._error, self._reference, self._candidate, self._dot)
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
            )
        if not self._elements:
            raise DataError(
                f"output {output!r}: no element could be compared, and comparing nothing is a "
                "failure: give samples that are not all padding, and a reference without NaN"
            )
        relative_l2 = self._relative_l2()
        return OutputComparison(
            output=output,
            elements=self._elements,
            max_abs=self._max_abs,
            relative_l2=relative_l2,
            cosine=self._cosine(),
            snr_db=-20.0 * math.log10(relative_l2) if relative_l2 else None,
        )

    def _relative_l2(self) -> float:
        if self._error == 0.0:
            return 0.0
        return math.sqrt(self._error / self._reference) if self._reference else math.inf

    def _cosine(self) -> float:
        if self._error == 0.0:
            return 1.0
        norms = math.sqrt(self._reference) * math.sqrt(self._candidate)
        return min(1.0, max(-1.0, self._dot / norms)) if norms else 0.0


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
