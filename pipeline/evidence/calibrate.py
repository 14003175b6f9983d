"""Calibration: what the inputs of each linear site look like on real data.

The model runs once over the samples with the distinct site inputs as extra outputs; each batch
goes straight into moments (:mod:`graph_passes.factorization.activations`), so that never more
than one batch of activations is in memory. Sites that read the same value share its statistics.
Padding positions are left out wherever a site's input can be matched with the mask.

The samples of :data:`SHARD_BATCHES` full batches are a shard, whose moments are collected by
themselves and then added to those of the earlier ones, so that workers on other machines can take a
shard each. The sums are the same to the bit, wherever that was. A large model runs in segments
(:mod:`~pipeline.evidence.segments`), each over all samples of a worker; what its sums come to waits
on a shelf.

A weight that is a stack of matrices, such as the experts of a layer, has statistics of each matrix:

1. Of an input ``[.., E, T, K]`` matrix e has the rows that it multiplies. Where one input is known
   to serve all of them, they have its statistics together.
2. A row that is zero stands for a token that a router sent to another expert. It takes no part in
   ``‖X(W − B)‖``, whatever B is, but would move the mean, so it is left out; and so is what an
   earlier layer of the expert made of it (:mod:`graph_passes.sites.routing`). What comes out of
   such a row is multiplied by a gate of zero: the experts' biases come out of it too.
3. That holds only for a stack with a bias. One without may stand in a graph that has no gate, as
   zeros come out of zeros: its bias is left alone, so its statistics are not centred.
4. A matrix that no row reached has no statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from compress_onnx.graph_passes.arrays import Array, Stored
from compress_onnx.graph_passes.errors import DataError
from compress_onnx.graph_passes.factorization import ActivationStats, MomentAccumulator
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.graph_passes.sites.routing import row_source
from compress_onnx.pipeline.evidence.segments import Segments, is_large
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.evidence.shifts import referring, weights_outside
from compress_onnx.pipeline.evidence.stacks import part
from compress_onnx.pipeline.evidence.stored import arrays_of, shelved, stats_of
from compress_onnx.pipeline.files.cache import content_key
from compress_onnx.pipeline.files.original import Original
from compress_onnx.pipeline.files.shelf import Shelf
from compress_onnx.pipeline.runtime.batches import POSITIONS, check_samples, model_batches
from compress_onnx.pipeline.runtime.inner_values import exposed, interface
from compress_onnx.pipeline.runtime.memory import return_freed
from compress_onnx.pipeline.runtime.padding import real_positions
from compress_onnx.pipeline.runtime.protobuf import serialized
from compress_onnx.pipeline.runtime.samples import Batch, Samples
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run
from compress_onnx.pipeline.runtime.threads import side_by_side

SHARD_BATCHES = 32
"""1,024 samples where nobody says how large a batch is; of no more, moments are held only once."""

_FORMAT = "calibration 3"
_UNMASKED = "/unmasked"
_ALL_PADDING = "every position is padding: there is nothing to calibrate on"


@dataclass(frozen=True)
class Calibration:
    """Activation statistics, and what a reader of the report must know about them.

    Attributes:
        stats: by matrix name; sites inside nested graphs have none.
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
    """One distinct input of a matrix: a value, and whether the site reads its transpose.

    Attributes:
        value: its name.
        transposed: whether the features are on the second-last axis.
        features: K.
        leading: the shape of the stack that the matrix is in; ``()`` where it reads all there is.
        place: of the matrix in that.
        source: the value whose zero rows were routed elsewhere; "" where the matrix reads all.
    """

    value: str
    transposed: bool
    features: int
    leading: tuple[int, ...] = ()
    place: tuple[int, ...] = ()
    source: str = ""

    @property
    def key(self) -> str:
        """Identifies the input."""
        name = f"{self.value}{'.T' if self.transposed else ''}"
        return f"{name}{list(self.place)} where {self.source}" if self.leading else name

    @property
    def reads(self) -> set[str]:
        """The values that it takes to see the input."""
        return {self.value, self.source} - {""}

    def of(self, value: Array) -> Array:
        """``[..., T, K]`` what the matrix multiplies of ``value``, the rows on the last axis."""
        rows = np.swapaxes(value, -1, -2) if self.transposed else value
        return part(rows, self.leading, self.place)


def calibrate(original: Original, samples: Samples, settings: RunSettings) -> Calibration:
    """Collect the statistics of all sites of ``original``.

    Args:
        original: the model; never changed.
        samples: the calibration data.
        settings: how it is run.

    Raises:
        DataError: the samples do not fit the model, all positions are padding, or a value is NaN
            or infinite.
        ModelFileError: the model cannot be run.
    """
    sites, cache = original.table.sites, settings.cache
    taps = taps_of(sites)
    distinct = {tap.key: tap for tap in taps.values()}
    mask = samples.mask_name or ""
    key = content_key(_FORMAT, original.digest, mask, "\n".join(sorted(distinct)), samples.inputs)
    stored = cache.get(key) if cache is not None else None
    moments = None if stored is None else _unpack(stored, distinct)
    cached = moments is not None
    if moments is None:
        moments, unmasked = _run(original, samples, settings, list(distinct.values()))
        return_freed()
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
        _by_matrix(sites, taps, moments),
        tuple(notes),
        f"{len(samples)} samples of {samples.origin}",
        cached,
    )


def taps_of(sites: Iterable[LinearSite]) -> dict[str, Tap]:
    """The input of each matrix by its name; sites inside nested graphs cannot be tapped."""
    return {
        name: _tap(site, place)
        for site in sites
        if not site.nested
        for name, place in site.matrices.items()
    }


def _tap(site: LinearSite, place: tuple[int, ...]) -> Tap:
    value, leading = site.input, site.weight.leading
    whole = Tap(value.name or "", site.transpose_input, site.in_features)
    if not leading or _serves_all(value, len(leading)):
        return whole
    source = row_source(value).name or "" if not site.transpose_input else ""
    return replace(whole, leading=leading, place=place, source=source or whole.value)


def _serves_all(value: ir.Value, axes: int) -> bool:
    """Whether a stack of so many leading ``axes`` multiplies one and the same input throughout."""
    assert value.shape is not None  # matching refuses a stack without
    return all(size == 1 for size in list(value.shape)[-2 - axes : -2])


def _by_matrix(
    sites: Iterable[LinearSite],
    taps: Mapping[str, Tap],
    moments: Mapping[str, ActivationStats | None],
) -> dict[str, ActivationStats]:
    """The statistics of each matrix that any row reached (rules 3 and 4)."""
    stats: dict[str, ActivationStats] = {}
    for site in sites:
        for name in [name for name in site.matrices if name in taps]:
            found = moments[taps[name].key]
            if found is not None:
                stats[name] = found if site.corrected_bias else found.uncentred()
    return stats


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
    names = sorted({name for tap in taps for name in tap.reads} & outputs)
    values = {**batch.feeds, **run(session, batch.feeds, names)}
    yield from _seen_in(values, taps, batch)


def _seen_in(
    values: Mapping[str, Array], taps: Iterable[Tap], batch: Batch
) -> Iterator[tuple[Tap, NDArray[np.generic], bool]]:
    for tap in taps:
        yield tap, *_rows(values, tap, batch)


class _Seen:
    """What some batches told about the inputs ``taps``.

    Attributes:
        taps: what is looked at.
        moments: by the key of the tap.
        unmasked: the taps in which padding counts.
        samples: how many were seen.
    """

    def __init__(self, taps: Iterable[Tap]) -> None:
        self.taps = tuple(taps)
        self.samples = 0
        self.moments = {
            tap.key: MomentAccumulator(tap.features, repr(tap.value)) for tap in self.taps
        }
        self.unmasked: set[str] = set()

    def add(self, seen: tuple[Tap, Array, bool]) -> None:
        """Note rows ``[n, K]`` of a tap, and whether padding is out of them."""
        tap, rows, masked = seen
        if not masked:
            self.unmasked.add(tap.key)
        self.moments[tap.key].update(rows)

    def join(self, other: _Seen) -> None:
        """Take in what the same samples told about other taps; ``other`` is used up."""
        self.taps += other.taps
        self.samples = other.samples
        self.unmasked |= other.unmasked
        self.moments |= other.moments

    def merged(self, later: _Seen) -> _Seen:
        """This with what a later shard told; both are used up."""
        self.samples += later.samples
        self.unmasked |= later.unmasked
        for key, moments in self.moments.items():
            moments.merge(later.moments.pop(key))
        return self


def _run(
    original: Original, samples: Samples, settings: RunSettings, taps: Sequence[Tap]
) -> tuple[dict[str, ActivationStats | None], set[str]]:
    """The statistics of each tap, by key, and the taps in which padding counts."""
    large = is_large(original)
    if large and not settings.backend.remote:
        return _run_in_segments(original, samples, settings, taps)
    if large:
        model = serialized(referring(original.model, original.data_folder))
        door = interface(original.model)
    else:
        model = door = tapped(original.model, taps)
    session = open_session(door, settings.session, data_folder=original.data_folder)
    check_samples(session, samples)
    batches = model_batches(session, samples, settings.batch_size, POSITIONS)
    shards = _shards(batches, SHARD_BATCHES * settings.batch_size)
    done = 0

    def more(samples: int) -> None:
        nonlocal done
        done += samples
        update(done)

    with settings.progress.step("calibrate", len(samples)) as update:
        if settings.backend.remote:
            # As many threads as here, in case that a kernel's sums depend on how rows are shared.
            threads = {"threads": settings.session.thread_count}
            spec = settings.session.model_copy(update=threads)
            job = _Job(model, original.data_folder, spec, taps)
            work = job.in_segments if large else job.in_one_piece
            found = settings.backend.map(work, map(list, shards))
        else:
            found = (_collect(session, shard, taps, more) for shard in shards)
        seen: _Seen | None = None
        for later in found:
            seen = later if seen is None else seen.merged(later)
            update(seen.samples)
    assert seen is not None  # there are no samples without one
    for tap in taps:
        if not seen.moments[tap.key].count and not tap.leading:
            raise DataError(_ALL_PADDING)
    return {tap.key: _at_rest(seen.moments.pop(tap.key)) for tap in taps}, seen.unmasked


def _run_in_segments(
    original: Original, samples: Samples, settings: RunSettings, taps: Sequence[Tap]
) -> tuple[dict[str, ActivationStats | None], set[str]]:
    """The same for a large model, whose statistics wait on a shelf."""
    stats: dict[str, ActivationStats | None] = {}
    unmasked: set[str] = set()
    shelf, door = Shelf(), open_session(interface(original.model), settings.session)
    check_samples(door, samples)
    batches = list(model_batches(door, samples, settings.batch_size, POSITIONS))
    model = referring(original.model, original.data_folder)
    with (
        weights_outside(model, original.data_folder) as (graph, folder),
        settings.progress.step("calibrate", len(samples)) as update,
    ):
        feeds, kept = [batch.feeds for batch in batches], _sources(taps)
        segments = Segments(graph, folder, feeds, settings.session, kept=kept)
        shard = SHARD_BATCHES * settings.batch_size
        for done, seen in enumerate(_by_segment(segments, batches, taps, shard), start=1):
            unmasked |= seen.unmasked
            for tap in seen.taps:
                rested = _at_rest(seen.moments.pop(tap.key))
                stats[tap.key] = None if rested is None else shelved(rested, shelf)
            update(done * len(samples) // len(segments))
    if any(stats[tap.key] is None for tap in taps if not tap.leading):
        raise DataError(_ALL_PADDING)
    return stats, unmasked


def _by_segment(
    segments: Segments, batches: Sequence[Batch], taps: Sequence[Tap], shard: float
) -> Iterator[_Seen]:
    """What can be seen of ``taps`` in each segment, summed up in shards of so many samples."""
    waiting, known, sources = list(taps), set[str](), _sources(taps)
    for _, found in segments.run({tap.value for tap in taps}):
        whole: _Seen | None = None
        part: _Seen | None = None
        for index, (batch, made) in enumerate(zip(batches, found, strict=True)):
            values = {**segments.values(index, known), **made}
            part = part or _Seen(tap for tap in waiting if tap.reads <= values.keys())
            side_by_side(part.add, _seen_in(values, part.taps, batch))
            part.samples += len(batch.index)
            if part.samples >= shard or batch is batches[-1]:
                whole, part = part if whole is None else whole.merged(part), None
        assert whole is not None  # there are no samples without one
        known |= sources & values.keys()
        waiting = [tap for tap in waiting if tap not in whole.taps]
        yield whole
    assert not waiting  # a value that a site reads is fed, or computed by some segment


def _sources(taps: Iterable[Tap]) -> set[str]:
    """What it takes to see some of ``taps`` beside their values."""
    return {tap.source for tap in taps if tap.source != tap.value} - {""}


def _at_rest(accumulator: MomentAccumulator) -> ActivationStats | None:
    return accumulator.result().at_rest if accumulator.count else None


def _shards(batches: Iterator[Batch], samples: int) -> Iterator[Iterator[Batch]]:
    """``batches`` in shards of at least ``samples``; each is to be taken before the next one is."""

    def shard(first: Batch) -> Iterator[Batch]:
        yield first
        seen = len(first.index)
        while seen < samples and (batch := next(batches, None)) is not None:
            yield batch
            seen += len(batch.index)

    return map(shard, batches)


def _collect(
    session: ort.InferenceSession,
    batches: Iterable[Batch],
    taps: Sequence[Tap],
    progress: Callable[[int], None] = lambda _more: None,
) -> _Seen:
    """What ``batches`` tell; ``progress`` is told how many samples each has."""
    seen = _Seen(taps)
    for batch in batches:
        side_by_side(seen.add, observe(session, batch, taps))
        seen.samples += len(batch.index)
        progress(len(batch.index))
    return seen


@dataclass(frozen=True)
class _Job:
    """What a worker needs beside a shard; it reads external data where that lies here.

    Attributes:
        model: serialized, :func:`tapped` where it runs in one piece.
        data_folder: of its external data.
        spec: how it is run.
        taps: where to look.
    """

    model: bytes
    data_folder: Path
    spec: SessionSpec
    taps: Sequence[Tap]

    def in_one_piece(self, batches: Sequence[Batch]) -> _Seen:
        """What a shard tells."""
        session = open_session(self.model, self.spec, data_folder=self.data_folder)
        return _collect(session, batches, self.taps)

    def in_segments(self, batches: Sequence[Batch]) -> _Seen:
        """The same of a large model."""
        seen, proto = _Seen(()), onnx.ModelProto.FromString(self.model)
        with weights_outside(proto, self.data_folder) as (graph, folder):
            feeds, kept = [batch.feeds for batch in batches], _sources(self.taps)
            segments = Segments(graph, folder, feeds, self.spec, kept=kept)
            for part in _by_segment(segments, batches, self.taps, math.inf):
                seen.join(part)
        return seen


def tapped(model: ir.Model, taps: Iterable[Tap]) -> bytes:
    """The serialized model with every tapped value as an output; ``model`` is left as it was."""
    return exposed(model, (name for tap in taps for name in tap.reads))


def _rows(values: Mapping[str, Array], tap: Tap, batch: Batch) -> tuple[NDArray[np.generic], bool]:
    """``[n, K]`` the rows that the matrix really sees, and whether padding is out of them."""
    value = tap.of(values[tap.value])
    rows = value.reshape(-1, value.shape[-1])
    real, masked = _unpadded(value, batch.mask)
    sent = _sent(value, tap.of(values[tap.source])) if tap.source else None
    kept = [rows_kept.reshape(-1) for rows_kept in (real, sent) if rows_kept is not None]
    return rows[np.logical_and.reduce(kept)] if kept else rows, masked


def _unpadded(
    value: Array, mask: NDArray[np.bool_] | None
) -> tuple[NDArray[np.bool_] | None, bool]:
    """Which rows of ``value`` are no padding (None: all count), and whether that is known."""
    if mask is None or mask.all():
        return None, True
    real = real_positions(value, mask)
    # One row a sample (a pooled vector) has no padding to leave out.
    return real, real is not None or (value.ndim == 2 and len(value) == len(mask))


def _sent(value: Array, source: Array) -> NDArray[np.bool_]:
    """Which rows of ``value`` a router sent there: they are zero neither here nor at the source."""
    sent: NDArray[np.bool_] = np.any(value != 0, axis=-1) & np.any(source != 0, axis=-1)
    return sent


def _pack(moments: Mapping[str, ActivationStats | None], unmasked: set[str]) -> dict[str, Stored]:
    arrays: dict[str, Stored] = {}
    for key, stats in moments.items():
        found: dict[str, Stored] = {"count": np.array(0)}
        if stats is not None:
            found = arrays_of(stats)
        arrays |= {f"{key}/{field}": array for field, array in found.items()}
        arrays[f"{key}{_UNMASKED}"] = np.array(key in unmasked)
    return arrays


def _unpack(
    arrays: Mapping[str, Stored], taps: Mapping[str, Tap]
) -> dict[str, ActivationStats | None] | None:
    by_tap: dict[str, dict[str, Stored]] = {}
    for name, array in arrays.items():
        key, _, field = name.rpartition("/")
        by_tap.setdefault(key, {})[field] = array
    try:
        return {key: stats_of(by_tap[key]) for key in taps}
    except KeyError:
        return None


def _unmasked(arrays: Mapping[str, Stored]) -> set[str]:
    return {
        n.removesuffix(_UNMASKED) for n, a in arrays.items() if n.endswith(_UNMASKED) and np.any(a)
    }
