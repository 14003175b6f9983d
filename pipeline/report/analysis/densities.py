"""How large the numbers are that linear sites read: densities of |x| and of deviations by unit.

x is the input of a site [positions, K], before it is multiplied by W; a unit is one of its K
features. Magnitudes are counted over all units and positions, batch by batch, in fixed bins. The
number of a bin is the bits of a float32 without its sign and its last 20: a bin is an eighth of an
octave, its edges are exact, and nothing has to be known about the data beforehand. Standard
deviations are square roots of the covariance's diagonal, one for each unit.

A density is one over log10 of the quantity, because its scales span decades: with the share of
exact zeros, it integrates to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress_onnx.graph_passes.arrays import Float64
from compress_onnx.pipeline.evidence.calibrate import observe, tapped, taps_of
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.original import Original
from compress_onnx.pipeline.runtime.batches import check_samples, model_batches
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import open_session

_SHIFT = 20
_BINS = 2040
"""Of the finite float32 numbers; those above are infinite or no numbers."""

_STD_BINS = 40


@dataclass(frozen=True, eq=False)
class Density:
    """The distribution of a non-negative quantity over log10 of it.

    Attributes:
        edges: ``[B + 1]`` of the bins, rising; in the quantity's own unit.
        share: ``[B]`` of all values that lie in each bin, from its lower edge up to the next.
        zeros: share of the values that are 0 or too small to tell from it.
    """

    edges: Float64
    share: Float64
    zeros: float

    @property
    def density(self) -> Float64:
        """``[B]`` share of the values for each decade."""
        return self.share / np.diff(np.log10(self.edges))

    def quantile(self, q: float) -> float:
        """The value below which a share ``q`` lies, to the width of a bin; 0 among the zeros."""
        below = self.zeros + np.cumsum(self.share)
        index = min(int(np.searchsorted(below, q)), len(below) - 1)
        return 0.0 if q <= self.zeros else float(self.edges[index + 1])


class MagnitudeHistogram:
    """Counts |x| batch by batch, in the bins of the module."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)

    def update(self, rows: NDArray[np.generic]) -> None:
        """Add all numbers of ``rows``; what is not finite is left out."""
        magnitude = np.abs(rows.astype(np.float32, copy=False)).reshape(-1)
        bins = magnitude.view(np.uint32) >> np.uint32(_SHIFT)
        self._counts += np.bincount(bins, minlength=_BINS)[:_BINS]

    def result(self) -> Density:
        """The density so far, without the empty bins at both ends."""
        total = max(int(self._counts.sum()), 1)
        used = np.flatnonzero(self._counts[1:]) + 1
        first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (1, 2)
        edges = np.arange(first, last + 1, dtype=np.uint32) << np.uint32(_SHIFT)
        # The edge above the largest numbers would be infinite.
        values = np.minimum(edges.view(np.float32), np.finfo(np.float32).max).astype(np.float64)
        share = self._counts[first:last] / total
        return Density(values, share, float(self._counts[0]) / total)


def deviation_density(deviations: Float64) -> Density:
    """The density of the standard deviations ``[K]`` of the units of an input."""
    positive = deviations[deviations > 0]
    zeros = 1 - len(positive) / len(deviations)
    if not len(positive):
        return Density(np.array([1.0, 10.0]), np.zeros(1), zeros)
    low, high = float(positive.min()), float(positive.max())
    # All alike: they need a bin of some width around them.
    edges = np.geomspace(low, high, _STD_BINS + 1) if low < high else np.array([0.9, 1.1]) * low
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)
    return Density(edges, np.histogram(positive, edges)[0] / len(deviations), zeros)


def magnitudes(original: Original, samples: Samples, settings: RunSettings) -> dict[str, Density]:
    """The density of |x| of every distinct site input, by :attr:`Tap.key`; padding left out.

    Never more than one batch of activations is in memory.

    Args:
        original: the model; its sites inside nested graphs and stacks of matrices are left out.
        samples: the data.
        settings: how it is run.

    Raises:
        DataError: the samples do not fit the model.
        ModelFileError: the model cannot be run.
    """
    plain = [site for site in original.table.sites if not site.weight.stacked]
    taps = {tap.key: tap for tap in taps_of(plain).values()}
    histograms = {key: MagnitudeHistogram() for key in taps}
    session = open_session(
        tapped(original.model, taps.values()), settings.session, data_folder=original.data_folder
    )
    check_samples(session, samples)
    done = 0
    with settings.progress.step("densities", len(samples)) as update:
        for batch in model_batches(session, samples, settings.batch_size):
            for tap, rows, _ in observe(session, batch, taps.values()):
                histograms[tap.key].update(rows)
            done += len(batch.index)
            update(done)
    return {key: histogram.result() for key, histogram in histograms.items()}
