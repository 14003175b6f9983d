"""What a model takes until it can answer: the time to open a session, and resident memory.

    load       from the file to an open session
    resident   by how much the memory of a process grows with the session and one run

Both are measured in a process a model (:mod:`pipeline.measure.fresh_process`). Resident memory is
what Linux calls Rss, mapped files included; on a GPU it says nothing. Each round takes both models,
in random order; ratios and intervals are those of the benchmark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.pipeline.measure.benchmark import Times, speedup, speedup_interval
from compress_onnx.pipeline.measure.fresh_process import in_fresh_process, save_feeds
from compress_onnx.pipeline.measure.latency import benchmark_feeds, cases_of
from compress_onnx.pipeline.recipe import BenchmarkSpec
from compress_onnx.pipeline.results import Benchmark, Loading
from compress_onnx.pipeline.runtime.progress import Progress, Silent
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import SessionSpec


def measure_loading(
    reference: Path,
    candidate: Path,
    feeds: Mapping[str, Array],
    spec: SessionSpec,
    *,
    rounds: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> Loading:
    """Open and run both models in fresh processes, in turn.

    Args:
        reference: the original model.
        candidate: the compressed one.
        feeds: one array for each input, for the run.
        spec: how they run.
        rounds: how often each is opened.
        seed: of the order, and of the intervals.
        progress: shows the rounds.

    Raises:
        ModelFileError: a model cannot be opened or run in a process of its own.
    """
    rng = np.random.default_rng(seed)
    models = (reference, candidate)
    loads = np.empty((rounds, 2))
    grown = np.full((rounds, 2), np.nan)
    with (
        TemporaryDirectory(prefix="compress-onnx-") as folder,
        (progress or Silent()).step(f"load on {spec.provider}", rounds) as update,
    ):
        arrays = Path(folder) / "feeds.npz"
        save_feeds(feeds, arrays)
        for index in range(rounds):
            for which in rng.permutation(2):
                loads[index, which], grown[index, which] = in_fresh_process(
                    models[which], arrays, spec
                )
            update(index + 1)
    ratio = _ratio(loads, rng)
    found = Loading(
        provider=spec.provider,
        threads=spec.thread_count,
        rounds=rounds,
        reference_load_ms=float(np.median(loads[:, 0])),
        candidate_load_ms=float(np.median(loads[:, 1])),
        load_ratio=ratio.value,
        load_ratio_low=ratio.low,
        load_ratio_high=ratio.high,
    )
    if (why := _why_not_resident(spec, grown)) is not None:
        return found.model_copy(update={"not_resident": why})
    before, after = np.median(grown, axis=0)
    memory = _ratio(grown, rng)
    return found.model_copy(
        update={
            "reference_resident_bytes": int(before),
            "candidate_resident_bytes": int(after),
            "resident_ratio": memory.value,
            "resident_ratio_low": memory.low,
            "resident_ratio_high": memory.high,
        }
    )


def measure_loadings(
    reference: Path,
    candidate: Path,
    benchmarks: Sequence[Benchmark],
    settings: BenchmarkSpec,
    *,
    rounds: int,
    samples: Samples | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Loading, ...]:
    """:func:`measure_loading` on each provider of ``benchmarks``, with the largest of its inputs.

    Args:
        reference: the original model.
        candidate: the compressed one.
        benchmarks: say which providers work; the threads are those of the first.
        settings: the sizes of inputs.
        rounds: how often each is opened; 0 measures nothing.
        samples: rows to feed; made-up inputs without.
        seed: of made-up inputs, of the order and of the intervals.
        progress: shows the rounds.

    Raises:
        ModelFileError: a model cannot be opened or run in a process of its own.
    """
    if not rounds:
        return ()
    largest = max(cases_of(settings), key=lambda case: case.batch * case.length)
    feeds = benchmark_feeds(reference, settings, samples=samples, seed=seed, case=largest)
    first = {row.provider: row for row in reversed(benchmarks)}
    return tuple(
        measure_loading(
            reference,
            candidate,
            feeds,
            SessionSpec.model_validate({"provider": provider, "threads": row.threads}),
            rounds=rounds,
            seed=seed,
            progress=progress,
        )
        for provider, row in reversed(first.items())
    )


class _Ratio(NamedTuple):
    """Candidate over reference, with a 95 % interval."""

    value: float
    low: float
    high: float


def _ratio(figures: Times, rng: np.random.Generator) -> _Ratio:
    turned = figures[:, ::-1]
    return _Ratio(speedup(turned), *speedup_interval(turned, rng))


def _why_not_resident(spec: SessionSpec, grown: Times) -> str | None:
    if spec.provider == "cuda":
        return "the memory of the process is not that of the GPU"
    if np.isnan(grown).any():
        return "this system does not tell in /proc"
    if (grown <= 0).any():
        return "the models are too small: the memory of the process did not grow"
    return None
