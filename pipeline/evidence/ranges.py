"""Between which values each input of each layer lies, on real data: what integers are scaled by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from compress_onnx.graph_passes.arrays import Floats
from compress_onnx.graph_passes.errors import DataError
from compress_onnx.graph_passes.factorization.rounding import InputRange
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.pipeline.evidence.calibrate import observe, tapped, taps_of
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.original import Original
from compress_onnx.pipeline.runtime.batches import check_samples, model_batches
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import open_session


def input_ranges(
    original: Original, sites: Sequence[LinearSite], samples: Samples, settings: RunSettings
) -> dict[str, InputRange]:
    """Find the ranges of the inputs of ``sites``, padding left out.

    Args:
        original: the model; never changed.
        sites: those of its layers to look at; plain weights.
        samples: the data.
        settings: how the model is run.

    Returns:
        By site name; nothing about sites inside nested graphs.

    Raises:
        DataError: the samples do not fit the model, or a value is NaN or infinite.
        ModelFileError: the model cannot be run.
    """
    taps = taps_of(sites)
    distinct = {tap.key: tap for tap in taps.values()}
    session = open_session(
        tapped(original.model, distinct.values()),
        settings.session,
        data_folder=original.data_folder,
    )
    check_samples(session, samples)
    lows: dict[str, Floats] = {}
    highs: dict[str, Floats] = {}
    squares: dict[str, Floats] = {}
    counts: Counter[str] = Counter()
    done = 0
    with settings.progress.step("ranges", len(samples)) as update:
        for batch in model_batches(session, samples, settings.batch_size):
            for tap, rows, _ in observe(session, batch, distinct.values()):
                if len(rows):
                    x = rows.astype(np.float32, copy=False)
                    low, high = x.min(axis=0), x.max(axis=0)  # [K]
                    lows[tap.key] = np.minimum(lows.get(tap.key, low), low)
                    highs[tap.key] = np.maximum(highs.get(tap.key, high), high)
                    sums = np.einsum("rk,rk->k", x, x, dtype=np.float64)
                    squares[tap.key] = squares.get(tap.key, 0.0) + sums
                    counts[tap.key] += len(x)
            if not all(np.isfinite(x).all() for x in (*lows.values(), *highs.values())):
                raise DataError(f"{samples.origin}: a value inside the model is NaN or infinite")
            done += len(batch.index)
            update(done)
    return {
        name: InputRange(lows[tap.key], highs[tap.key], squares[tap.key] / counts[tap.key])
        for name, tap in taps.items()
        if tap.key in lows
    }
