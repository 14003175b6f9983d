"""The latency step: inputs of the right size, on every provider that was asked for."""

from __future__ import annotations

from pathlib import Path

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.planning.plan import CompressionPlan
from compress_onnx.pipeline.measure.benchmark import benchmark
from compress_onnx.pipeline.measure.providers import measure_on
from compress_onnx.pipeline.recipe import BenchmarkSpec
from compress_onnx.pipeline.results import Benchmark
from compress_onnx.pipeline.runtime.inputs import load_structure, model_inputs, synthetic_feeds
from compress_onnx.pipeline.runtime.progress import Progress, Silent
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import Provider, SessionSpec


def benchmark_feeds(
    model: Path, settings: BenchmarkSpec, *, samples: Samples | None, seed: int
) -> dict[str, Array]:
    """The inputs that ``model`` is measured on.

    Args:
        model: what takes them.
        settings: their batch and length.
        samples: rows to feed; made-up inputs without.
        seed: of made-up inputs.

    Raises:
        DataError: ``samples`` does not fit the model.
    """
    return synthetic_feeds(
        model_inputs(load_structure(model)),
        batch=settings.batch,
        length=settings.length,
        seed=seed,
        samples=samples,
    )


def measure_latency(
    reference: Path,
    candidate: Path,
    settings: BenchmarkSpec,
    *,
    samples: Samples | None = None,
    plan: CompressionPlan | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[tuple[Benchmark, ...], dict[str, str]]:
    """Benchmark two models on the providers that ``settings`` names.

    Args:
        reference: the original model.
        candidate: the compressed one.
        settings: provider, sizes and repetitions.
        samples: rows to feed; made-up inputs without.
        plan: says which nodes were changed, for the ideal speed-up.
        seed: of made-up inputs, of the order of runs, and of the intervals.
        progress: shows the rounds.

    Returns:
        The benchmarks, and a reason for each provider that ``auto`` could not measure.

    Raises:
        ProviderError: a provider that was asked for by name is not available.
    """
    feeds = benchmark_feeds(reference, settings, samples=samples, seed=seed)
    ratios = (
        {node: s.parameters_after / s.parameters_before for s in plan.changed for node in s.nodes}
        if plan
        else None
    )

    def measure(provider: Provider) -> Benchmark:
        spec = SessionSpec(provider=provider, threads=settings.threads)
        step = f"benchmark on {provider}"
        with (progress or Silent()).step(step, settings.iterations) as update:
            return benchmark(
                reference,
                candidate,
                feeds,
                spec,
                warmup=settings.warmup,
                iterations=settings.iterations,
                seed=seed,
                sites=ratios,
                progress=update,
            )

    return measure_on([settings.provider], measure)
