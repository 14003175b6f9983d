"""Latency of a reference and a candidate, measured so that the comparison is fair.

Each round times both models once, in random order: drift of the machine (frequency, other
processes) hits both alike and cancels in the ratio. Inputs are bound to the device once and
outputs stay there, so copies are not measured, and the device is synchronized before the clock is
read. The interval of the speed-up is a bootstrap over whole rounds, which keeps the pairs. Over
several shapes of inputs, a speed-up is the geometric mean of those at each.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from scipy.stats import bootstrap

from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.measure.kernel_times import LinearShares, ideal_speedup, linear_shares
from compress_onnx.pipeline.results import Benchmark, LatencyStats
from compress_onnx.pipeline.runtime.processor import processor_name
from compress_onnx.pipeline.runtime.session import (
    EXECUTION_PROVIDERS,
    SessionSpec,
    one_line,
    open_session,
)

Times = NDArray[np.float64]

Summary = Callable[..., Times]
"""What stands for many numbers along an ``axis``, such as ``np.median`` or ``np.sum``."""

_RESAMPLES = 1000
_LEAST_ROUNDS = 5
_MAX_PROFILED_RUNS = 20
_QUANTILES = 41
"""Of a distribution of latencies: every 2.5 % of the runs."""
# Of one core; below this the calling thread was kept waiting.
_BUSY = 0.9
_CUDA_SETTINGS = ("device_id", "use_tf32", "enable_cuda_graph")

_log = logging.getLogger(__name__)


class Interval(NamedTuple):
    """Bounds of a 95 % interval."""

    low: float
    high: float


class BoundModel:
    """A session with its inputs and outputs bound to its device; calling it runs it once.

    :meth:`bind` binds other inputs to the same session.

    Args:
        model: the model's path.
        feeds: one array for each input.
        spec: how to run it.

    Raises:
        DataError: ``feeds`` has not exactly the model's inputs.
        ProviderError, ModelFileError: the session cannot be opened.
    """

    def __init__(self, model: Path, feeds: Mapping[str, np.ndarray], spec: SessionSpec) -> None:
        self._model = model
        self._device = "cuda" if spec.provider == "cuda" else "cpu"
        self.session = open_session(model, spec, spinning=True)
        self.bind(feeds)

    def bind(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Run on ``feeds`` from now on.

        Raises:
            DataError: ``feeds`` has not exactly the model's inputs.
        """
        names = {i.name for i in self.session.get_inputs()}
        if names != set(feeds):
            raise DataError(
                f"{self._model} takes the inputs {', '.join(sorted(names))}; "
                f"the data has {', '.join(sorted(feeds))}"
            )
        self._binding = self.session.io_binding()  # a new one: outputs keep their first shape
        # The binding does not own the values: they live as long as this object.
        self._values = {
            name: ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"), self._device)
            for name, array in feeds.items()
        }
        for name, value in self._values.items():
            self._binding.bind_ortvalue_input(name, value)
        for output in self.session.get_outputs():
            self._binding.bind_output(output.name, self._device)
        self._binding.synchronize_inputs()

    def __call__(self) -> None:
        """Run once and wait until the device is done.

        Raises:
            DataError: ONNX Runtime cannot run the model on these inputs.
        """
        try:
            self.session.run_with_iobinding(self._binding)
            self._binding.synchronize_outputs()
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise DataError(
                f"{self._model} does not run on these inputs, pass fitting ones with --inputs: "
                f"{one_line(error)}"
            ) from error


def benchmark(
    reference: Path,
    candidate: Path,
    feeds: Mapping[str, np.ndarray],
    spec: SessionSpec,
    *,
    warmup: int,
    iterations: int,
    seed: int,
    case: str = "",
    samples: int | None = None,
    sites: Mapping[str, float] | None = None,
    limit_s: float = math.inf,
    progress: Callable[[int], None] | None = None,
) -> Benchmark:
    """Time ``reference`` against ``candidate`` on one provider.

    Args:
        reference: the original model.
        candidate: the compressed model.
        feeds: one array for each input, for both models.
        spec: how to run them.
        warmup: rounds before the timed ones.
        iterations: timed rounds.
        seed: of the order within the rounds and of the bootstrap.
        case: which of a grid this is.
        samples: how many are in ``feeds``, for samples a second; None leaves those out.
        sites: for each node of ``reference`` that got factored, its FLOPs after over before,
            r(K+N)/(K·N). Without it there is no ideal speed-up.
        limit_s: about so many seconds: fewer rounds, but a few, where the warm-up took long.
        progress: called between rounds with the number of timed rounds so far.

    Raises:
        ProviderError: the provider does not work here.
        ModelFileError: a model cannot be loaded.
        DataError: ``feeds`` does not fit a model.
    """
    models = BoundModel(reference, feeds, spec), BoundModel(candidate, feeds, spec)
    rng = np.random.default_rng(seed)
    warmup_s = interleave(models, warmup, rng).sum(axis=1) / 1e9
    if warmup and math.isfinite(limit_s):
        iterations = int(np.clip(limit_s / warmup_s.min(), _LEAST_ROUNDS, iterations))
    cpu_start, wall_start = time.process_time(), time.perf_counter()
    times_ms = interleave(models, iterations, rng, progress=progress) / 1e6
    cpu_per_wall = (time.process_time() - cpu_start) / (time.perf_counter() - wall_start)
    interval = speedup_interval(times_ms, rng)
    session = models[0].session
    ideal = _Ideal()
    if sites:
        runs = min(iterations, _MAX_PROFILED_RUNS)
        ideal = _ideal(linear_shares(reference, feeds, spec, list(sites), runs), sites)
    settings = {**_settings(session, spec), **ideal.settings}
    if spec.provider == "cpu":
        settings |= _quality(cpu_per_wall, interval, ideal.speedup)
    stats = [latency_stats(times) for times in times_ms.T]
    per_s = [None if samples is None else 1000 * samples / found.p50_ms for found in stats]
    return Benchmark(
        provider=spec.provider,
        case=case,
        providers=tuple(session.get_providers()),
        threads=spec.thread_count,
        optimization=spec.optimization,
        input_shapes={name: array.shape for name, array in feeds.items()},
        reference=stats[0],
        candidate=stats[1],
        speedup=speedup(times_ms),
        speedup_low=interval.low,
        speedup_high=interval.high,
        reference_samples_per_s=per_s[0],
        candidate_samples_per_s=per_s[1],
        linear_share=ideal.linear_share,
        ideal_speedup=ideal.speedup,
        settings=settings,
    )


class _Ideal(NamedTuple):
    """The ideal speed-up and what it is made of; None where it is not known."""

    linear_share: float | None = None
    speedup: float | None = None
    settings: Mapping[str, str] = {}


def _ideal(profiled: LinearShares, sites: Mapping[str, float]) -> _Ideal:
    if profiled.by_node is None:
        return _Ideal(settings={"ideal_speedup": f"unknown: {profiled.note}"})
    return _Ideal(sum(profiled.by_node.values()), ideal_speedup(profiled.by_node, sites))


def _quality(cpu_per_wall: float, interval: Interval, ideal: float | None) -> dict[str, str]:
    """How far a measurement on the CPU can be trusted, as text for the report."""
    quality = {"cpu_per_wall": f"{cpu_per_wall:.2f}"}
    if found := doubts(cpu_per_wall, interval, ideal):
        quality["doubts"] = "; ".join(found)
        _log.warning("latency on cpu: %s", quality["doubts"])
    return quality


def interleave(
    models: Sequence[Callable[[], None]],
    rounds: int,
    rng: np.random.Generator,
    *,
    progress: Callable[[int], None] | None = None,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Times:
    """Time all models once a round, in random order.

    Returns:
        Nanoseconds ``[rounds, models]``, in the order of ``models`` whatever the order in time was.
    """
    times_ns = np.empty((rounds, len(models)), dtype=np.float64)
    with _no_garbage_collection():
        for index in range(rounds):
            for which in rng.permutation(len(models)):
                run_once = models[which]
                start = clock()
                run_once()
                times_ns[index, which] = clock() - start
            if progress is not None:
                progress(index + 1)
    return times_ns


def doubts(cpu_per_wall: float, interval: Interval, ideal: float | None) -> list[str]:
    """Why the measured speed-up should not be taken for the gain of the factorization.

    Args:
        cpu_per_wall: CPU time of this process over elapsed time; on a quiet machine at least the
            calling thread is always busy.
        interval: of the measured speed-up.
        ideal: the ideal speed-up, if known.
    """
    found = []
    if cpu_per_wall < _BUSY:
        found.append(
            f"other processes took the cores (CPU time was {cpu_per_wall:.2f} of the elapsed "
            "time): short runs suffer less than long ones, measure again on a quiet machine"
        )
    if ideal is not None and interval.low > ideal:
        found.append(
            "the speed-up is above the ideal one, so factoring alone does not explain it: compare "
            "the operators that ONNX Runtime executes in both models"
        )
    return found


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def latency_stats(times_ms: Times) -> LatencyStats:
    """Summarize the latencies ``[rounds]`` of one model, with the population deviation."""
    p50, p90, p99 = np.percentile(times_ms, [50, 90, 99])
    return LatencyStats(
        iterations=len(times_ms),
        p50_ms=float(p50),
        p90_ms=float(p90),
        p99_ms=float(p99),
        mean_ms=float(np.mean(times_ms)),
        std_ms=float(np.std(times_ms)),
        min_ms=float(np.min(times_ms)),
        quantiles_ms=tuple(map(float, np.quantile(times_ms, np.linspace(0, 1, _QUANTILES)))),
    )


def speedup(times: Times, summary: Summary = np.median) -> float:
    """The reference's time over the candidate's, ``[rounds, 2]`` or ``[shapes, rounds, 2]``.

    ``summary`` is over the rounds: their median, or ``np.sum`` where they are of unlike work. Over
    shapes, the geometric mean is taken.
    """
    found = summary(times, axis=-2)  # [..., 2]
    return float(_geometric_mean(np.atleast_1d(found[..., 0] / found[..., 1])))


def speedup_interval(
    times: Times, rng: np.random.Generator, summary: Summary = np.median
) -> Interval:
    """A 95 % percentile bootstrap interval of :func:`speedup`.

    Whole rounds are drawn, so that what hits both models alike stays out of the interval; of each
    shape by itself. A single round gives a point.
    """
    if times.shape[-2] == 1:
        return Interval(*[speedup(times, summary)] * 2)
    shapes = times.reshape(-1, *times.shape[-2:])  # [shapes, rounds, 2]
    drawn = np.stack([_drawn(rounds, rng, summary) for rounds in shapes])  # [shapes, resamples]
    low, high = np.percentile(_geometric_mean(drawn), (2.5, 97.5))
    return Interval(float(low), float(high))


def _drawn(times: Times, rng: np.random.Generator, summary: Summary) -> Times:
    """The speed-up of each bootstrap sample of ``[rounds, 2]``."""
    found: Times = bootstrap(
        (times[:, 0], times[:, 1]),
        lambda reference, candidate, axis: (
            summary(reference, axis=axis) / summary(candidate, axis=axis)
        ),
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=rng,
    ).bootstrap_distribution
    return found


def _geometric_mean(ratios: Times) -> Times:
    """Over the first axis; a single ratio stays exactly what it is."""
    found: Times = np.prod(ratios, axis=0) ** (1 / len(ratios))
    return found


def _settings(session: ort.InferenceSession, spec: SessionSpec) -> dict[str, str]:
    """What else decides the figures, as text for the report."""
    settings = {"processor": processor_name()}
    if spec.provider == "cuda":
        options = session.get_provider_options()[EXECUTION_PROVIDERS["cuda"]]
        return settings | {name: options.get(name, "unknown") for name in _CUDA_SETTINGS}
    if spec.provider == "openvino":
        return settings | {"num_of_threads": str(spec.thread_count)}
    return settings | {
        "intra_op_threads": str(spec.thread_count),
        "intra_op_spinning": "ONNX Runtime's default, stopped after each run",
    }
