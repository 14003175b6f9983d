"""The benchmark: fair order, right statistics, and no provider but the one asked for."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper, parser

from compress_onnx.graph_passes.errors import DataError, ModelFileError, ProviderError
from compress_onnx.pipeline.measure.benchmark import (
    BoundModel,
    Interval,
    benchmark,
    doubts,
    interleave,
    latency_stats,
    speedup,
    speedup_interval,
)
from compress_onnx.pipeline.measure.providers import measure_on
from compress_onnx.pipeline.runtime.session import SessionSpec, provider_problems

SPEC = SessionSpec(threads=1)
CUDA_PROBLEM = provider_problems()["cuda"]
FEEDS = {"x": np.ones((2, 64), np.float32)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    proto = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 17]> g (float[N, 64] x) => (float[N, 64] y) '
        "{ [lin] a = MatMul(x, w)  [add] b = Add(a, x)  [act] y = Relu(b) }"
    )
    weight = np.random.default_rng(0).standard_normal((64, 64), dtype=np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    path = tmp_path_factory.mktemp("benchmark") / "model.onnx"
    onnx.save(proto, path)
    return path


class FakeMachine:
    """A clock that only models move: the reference takes 30 ns, the candidate 10 ns."""

    def __init__(self) -> None:
        self.now = 0
        self.order: list[str] = []
        self.collecting: list[bool] = []

    def run(self, name: str, duration: int) -> None:
        self.now += duration
        self.order.append(name)
        self.collecting.append(gc.isenabled())

    def times(self, rounds: int, seed: int, **kwargs) -> np.ndarray:
        models = (lambda: self.run("reference", 30)), (lambda: self.run("candidate", 10))
        rng = np.random.default_rng(seed)
        return interleave(models, rounds, rng, clock=lambda: self.now, **kwargs)


def test_rounds_are_paired_and_their_order_is_mixed() -> None:
    machine = FakeMachine()
    times = machine.times(40, seed=0)
    np.testing.assert_array_equal(times, np.tile([30, 10], (40, 1)))
    first = machine.order[::2]
    second = machine.order[1::2]
    assert all(one != other for one, other in zip(first, second, strict=True))
    assert 10 < first.count("reference") < 30


def test_order_follows_the_seed() -> None:
    machines = [FakeMachine() for _ in range(3)]
    for machine, seed in zip(machines, (1, 1, 2), strict=True):
        machine.times(20, seed)
    assert machines[0].order == machines[1].order != machines[2].order


def test_no_garbage_is_collected_while_timing() -> None:
    machine = FakeMachine()
    machine.times(3, seed=0)
    assert not any(machine.collecting)
    assert gc.isenabled()


def test_progress_counts_rounds_outside_the_timed_part() -> None:
    machine, seen = FakeMachine(), []

    def progress(done: int) -> None:
        seen.append(done)
        machine.now += 1000

    times = machine.times(3, seed=0, progress=progress)
    assert seen == [1, 2, 3]
    assert times.max() == 30


def test_statistics_of_known_times() -> None:
    stats = latency_stats(np.arange(101, dtype=np.float64))
    assert stats.iterations == 101
    assert (stats.p50_ms, stats.p90_ms, stats.p99_ms) == (50, 90, 99)
    assert (stats.mean_ms, stats.min_ms) == (50, 0)
    assert stats.std_ms == pytest.approx(np.sqrt((101**2 - 1) / 12))


def test_speedup_is_a_ratio_of_medians() -> None:
    times = np.array([[20.0, 10.0], [20.0, 10.0], [1000.0, 10.0]])
    assert speedup(times) == 2


def test_interval_of_constant_times_is_a_point() -> None:
    interval = speedup_interval(np.tile([30.0, 10.0], (10, 1)), np.random.default_rng(0))
    assert interval == (3, 3)


def noisy_interval(rounds: int, seed: int) -> tuple[float, float]:
    """The interval of a speed-up of 2 under independent noise."""
    rng = np.random.default_rng(seed)
    return speedup_interval(rng.lognormal(sigma=0.2, size=(rounds, 2)) * [20.0, 10.0], rng)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    intervals = [noisy_interval(30, seed) for seed in range(40)]
    assert sum(low < 2 < high for low, high in intervals) >= 36


def test_interval_narrows_with_rounds() -> None:
    (low, high), (few_low, few_high) = noisy_interval(1000, 0), noisy_interval(20, 0)
    assert high - low < (few_high - few_low) / 2


@given(st.integers(5, 30), st.integers(0, 5))
def test_pairing_cancels_drift(rounds: int, seed: int) -> None:
    drift = np.random.default_rng(seed).uniform(1, 100, rounds)
    interval = speedup_interval(np.outer(drift, [3.0, 1.0]), np.random.default_rng(seed))
    np.testing.assert_allclose(interval, 3)


def test_benchmark_records_what_was_measured(model: Path) -> None:
    seen: list[int] = []
    result = benchmark(
        model,
        model,
        FEEDS,
        SPEC,
        warmup=2,
        iterations=6,
        seed=0,
        sites={"lin": 0.5},
        progress=seen.append,
    )
    assert result.provider == "cpu"
    assert result.providers == ("CPUExecutionProvider",)
    assert (result.threads, result.optimization) == (1, "all")
    assert result.input_shapes == {"x": (2, 64)}
    assert result.reference.iterations == result.candidate.iterations == 6
    assert seen == [1, 2, 3, 4, 5, 6]
    assert result.speedup == result.reference.p50_ms / result.candidate.p50_ms
    assert result.speedup_low <= result.speedup <= result.speedup_high
    assert result.settings.keys() - {"doubts"} == {
        "processor",
        "intra_op_threads",
        "intra_op_spinning",
        "cpu_per_wall",
    }
    assert result.linear_share is not None
    assert 0 < result.linear_share <= 1
    assert result.ideal_speedup == pytest.approx(1 / (1 - 0.5 * result.linear_share))


def test_ideal_is_unknown_rather_than_wrong(model: Path) -> None:
    common = {"warmup": 0, "iterations": 5, "seed": 0}
    result = benchmark(model, model, FEEDS, SPEC, sites={"absent": 0.5}, **common)
    assert result.linear_share is None
    assert result.ideal_speedup is None
    assert "absent" in result.settings["ideal_speedup"]
    without_sites = benchmark(model, model, FEEDS, SPEC, **common)
    assert without_sites.ideal_speedup is None
    assert "ideal_speedup" not in without_sites.settings


def test_a_limit_leaves_a_few_rounds(model: Path) -> None:
    common = {"warmup": 1, "iterations": 40, "seed": 0}
    short = benchmark(model, model, FEEDS, SPEC, limit_s=0, **common)
    assert short.reference.iterations == 5
    long = benchmark(model, model, FEEDS, SPEC, limit_s=1000, **common)
    assert long.reference.iterations == 40


def test_doubtful_measurements_say_so() -> None:
    assert doubts(1.0, Interval(1.4, 1.6), 1.5) == []
    assert doubts(1.9, Interval(1.4, 1.6), None) == []
    (contended,) = doubts(0.4, Interval(1.4, 1.6), 1.5)
    assert "0.40" in contended
    (unexplained,) = doubts(1.0, Interval(1.8, 1.9), 1.5)
    assert "above the ideal" in unexplained


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {**FEEDS, "unknown": np.ones(1, np.float32)},
        {"x": np.ones((2, 63), np.float32)},
        {"x": np.ones((2, 64), np.float64)},
    ],
)
def test_feeds_that_do_not_fit(model: Path, feeds: dict[str, np.ndarray]) -> None:
    with pytest.raises(DataError, match=r"model\.onnx"):
        benchmark(model, model, feeds, SPEC, warmup=0, iterations=5, seed=0)


def test_one_session_runs_on_inputs_of_several_shapes(model: Path) -> None:
    bound = BoundModel(model, FEEDS, SPEC)
    session = bound.session
    for rows in (2, 5, 1, 2):
        feeds = {"x": np.full((rows, 64), rows, np.float32)}
        bound.bind(feeds)
        bound()
        bound()
        (found,) = bound._binding.copy_outputs_to_cpu()
        np.testing.assert_array_equal(found, session.run(None, feeds)[0])
    assert bound.session is session
    with pytest.raises(DataError, match=r"model\.onnx takes the inputs x"):
        bound.bind({"y": FEEDS["x"]})


def test_missing_candidate(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError):
        benchmark(model, tmp_path / "no.onnx", FEEDS, SPEC, warmup=0, iterations=5, seed=0)


def measure_with(model: Path):
    def measure(provider):
        spec = SPEC.model_copy(update={"provider": provider})
        return benchmark(model, model, FEEDS, spec, warmup=0, iterations=5, seed=0)

    return measure


@pytest.mark.skipif(CUDA_PROBLEM is None, reason="CUDA works on this machine")
def test_cuda_request_without_cuda_is_refused(model: Path) -> None:
    with pytest.raises(ProviderError):
        measure_on(["cuda"], measure_with(model))


@pytest.mark.skipif(CUDA_PROBLEM is None, reason="CUDA works on this machine")
def test_auto_says_what_it_could_not_measure(model: Path) -> None:
    measured, unmeasured = measure_on(["auto"], measure_with(model))
    assert [result.provider for result in measured] == ["cpu"]
    assert unmeasured.keys() == {"cuda", "openvino"}


def test_auto_does_not_hide_other_errors(model: Path) -> None:
    def broken(provider):
        raise DataError("broken")

    with pytest.raises(DataError):
        measure_on(["auto"], broken)


@pytest.mark.cuda
@pytest.mark.skipif(CUDA_PROBLEM is not None, reason=str(CUDA_PROBLEM))
def test_cuda_is_measured_on_cuda(model: Path) -> None:
    (result,), _ = measure_on(["cuda"], measure_with(model))
    assert result.providers[0] == "CUDAExecutionProvider"
    assert result.settings["use_tf32"] in ("0", "1")
