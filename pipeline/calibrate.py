"""Calibration: what the inputs of each linear site look like on real data.

The model runs once over the samples with the distinct site inputs as extra outputs; each batch
goes straight into moments (:mod:`graph_passes.factorization.activations`), so that never more
than one batch of activations is in memory. Sites that read the same value share its statistics.
Padding positions are left out wherever a site's input can be matched with the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from graph_passes.errors import DataError
from graph_passes.factorization import ActivationStats, MomentAccumulator
from graph_passes.sites import LinearSite
from pipeline.cache import ArrayCache, content_key
from pipeline.data.samples import Array, Batch, Samples
from pipeline.session import SessionSpec, open_session, run
from pipeline.validate import check_samples, model_batches

_FORMAT = "calibration 1"


@dataclass(frozen=True)
class Calibration:
    """Activation statistics, and what a reader of the report must know about them.

    Attributes:
        stats: by site name; sites inside nested graphs have none.
        notes: sites whose padding could not be left out, and the like.
        origin: the data, in words.
        cached: whether the statistics came from the cache.
    """

    stats: Mapping[str, ActivationStats]
    notes: tuple[str, ...]
    origin: str
    cached: bool = False


@dataclass(frozen=True)
class Tap:
    """One distinct site input: a value, and whether the site reads its transpose."""

    value: str
    transposed: bool
    features: int

    @property
    def key(self) -> str:
        """Identifies the input."""
        return f"{self.value}{'.T' if self.transposed else ''}"


def calibrate(
    model: ir.Model,
    digest: str,
    sites: Sequence[LinearSite],
    samples: Samples,
    *,
    data_folder: Path,
    spec: SessionSpec | None = None,
    batch_size: int = 32,
    cache: ArrayCache | None = None,
    progress: Callable[[int], None] | None = None,
) -> Calibration:
    """Collect the statistics of all ``sites``.

    Args:
        model: the model that the sites belong to; unchanged afterwards.
        digest: identifies the model's content for the cache.
        sites: where to look.
        samples: the calibration data.
        data_folder: where the model's external data lies.
        spec: how the model is run.
        batch_size: samples at a time.
        cache: None computes afresh.
        progress: called after each batch with the number of samples done so far.

    Raises:
        DataError: the samples do not fit the model, or all positions are padding.
        ModelFileError: the model cannot be run.
    """
    taps = taps_of(sites)
    distinct = {tap.key: tap for tap in taps.values()}
    mask = samples.mask_name or ""
    key = content_key(_FORMAT, digest, mask, "\n".join(sorted(distinct)), samples.inputs)
    stored = cache.get(key) if cache is not None else None
    moments = None if stored is None else _unpack(stored, distinct)
    cached = moments is not None
    if moments is None:
        session = open_session(tapped(model, distinct.values()), spec, data_folder=data_folder)
        check_samples(session, samples)
        batches = model_batches(session, samples, batch_size)
        moments, unmasked = _collect(session, batches, list(distinct.values()), progress)
        if cache is not None:
            cache.put(key, _pack(moments, unmasked))
    else:
        unmasked = _unmasked(stored or {})
    notes = [
        f"the padding mask does not fit the input of {name}: padding counts there"
        for name, tap in taps.items()
        if tap.key in unmasked
    ]
    return Calibration(
        {name: moments[tap.key] for name, tap in taps.items()},
        tuple(notes),
        f"{len(samples)} samples of {samples.origin}",
        cached,
    )


def taps_of(sites: Iterable[LinearSite]) -> dict[str, Tap]:
    """The input of each site by the site's name; sites inside nested graphs cannot be tapped."""
    return {
        site.name: Tap(site.input.name or "", site.transpose_input, site.in_features)
        for site in sites
        if not site.nested
    }


def observe(
    session: ort.InferenceSession, batch: Batch, taps: Iterable[Tap]
) -> Iterator[tuple[Tap, NDArray[np.generic], bool]]:
    """Run one batch; yields the rows ``[n, K]`` of each tap, and whether padding is out of them.

    Args:
        session: of the model as :func:`tapped`.
        batch: what to run.
        taps: where to look.
    """
    taps = tuple(taps)
    outputs = {value.name for value in session.get_outputs()}
    names = sorted({tap.value for tap in taps} & outputs)
    values = {**batch.feeds, **run(session, batch.feeds, names)}
    for tap in taps:
        yield tap, *_rows(values[tap.value], tap, batch)


def _collect(
    session: ort.InferenceSession,
    batches: Iterator[Batch],
    taps: Sequence[Tap],
    progress: Callable[[int], None] | None,
) -> tuple[dict[str, ActivationStats], set[str]]:
    accumulators = {tap.key: MomentAccumulator(tap.features) for tap in taps}
    unmasked: set[str] = set()
    done = 0
    for batch in batches:
        for tap, rows, masked in observe(session, batch, taps):
            if not masked:
                unmasked.add(tap.key)
            accumulators[tap.key].update(rows)
        done += len(batch.index)
        if progress is not None:
            progress(done)
    for tap in taps:
        if not accumulators[tap.key].count:
            raise DataError("every position is padding: there is nothing to calibrate on")
    return {key: accumulator.result() for key, accumulator in accumulators.items()}, unmasked


def tapped(model: ir.Model, taps: Iterable[Tap]) -> bytes:
    """The serialized model with every tapped value as an output; ``model`` is left as it was."""
    wanted = {tap.value for tap in taps} - {value.name for value in model.graph.outputs}
    extra = [v for node in model.graph for v in node.outputs if v.name in wanted]
    before = len(model.graph.outputs)
    model.graph.outputs.extend(extra)
    try:
        return bytes(ir.to_proto(model).SerializeToString())
    finally:
        del model.graph.outputs[before:]


def _rows(value: Array, tap: Tap, batch: Batch) -> tuple[NDArray[np.generic], bool]:
    """``[n, K]`` the rows that the site really sees, and whether padding is out of them."""
    if tap.transposed:
        value = np.swapaxes(value, -1, -2)
    rows = value.reshape(-1, value.shape[-1])
    mask = batch.mask
    if mask is None or mask.all():
        return rows, True
    real = real_positions(value, mask)
    if real is not None:
        return rows[real.reshape(-1)], True
    # One row a sample (a pooled vector) has no padding to leave out.
    return rows, value.ndim == 2 and len(value) == len(mask)


def real_positions(value: Array, mask: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """Which rows of ``value`` are no padding; None where the mask does not fit.

    Args:
        value: ``[B, T, ..., K]``, or ``[B·T, K]``.
        mask: ``[B, T]``.

    Returns:
        Booleans of the shape of ``value`` without its last axis.
    """
    if value.ndim >= 3 and value.shape[:2] == mask.shape:
        trailing = (1,) * (value.ndim - 3)
        return np.broadcast_to(mask.reshape(*mask.shape, *trailing), value.shape[:-1])
    if value.ndim == 2 and len(value) == mask.size:
        return mask.reshape(-1)
    return None


def _pack(moments: Mapping[str, ActivationStats], unmasked: set[str]) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for key, stats in moments.items():
        arrays[f"{key}/count"] = np.array(stats.count)
        arrays[f"{key}/mean"] = stats.mean
        arrays[f"{key}/magnitude"] = stats.magnitude
        arrays[f"{key}/second_moment"] = stats.second_moment
        arrays[f"{key}/unmasked"] = np.array(key in unmasked)
    return arrays


def _unpack(
    arrays: Mapping[str, Array], taps: Mapping[str, Tap]
) -> dict[str, ActivationStats] | None:
    try:
        return {
            key: ActivationStats(
                int(arrays[f"{key}/count"]),
                arrays[f"{key}/mean"].astype(np.float64),
                arrays[f"{key}/magnitude"].astype(np.float64),
                arrays[f"{key}/second_moment"].astype(np.float64),
            )
            for key in taps
        }
    except KeyError:
        return None


def _unmasked(arrays: Mapping[str, Array]) -> set[str]:
    suffix = "/unmasked"
    return {name.removesuffix(suffix) for name, a in arrays.items() if name.endswith(suffix) and a}
