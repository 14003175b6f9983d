"""The latency step: inputs of the right sizes, on every provider that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple, TypeVar

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import CompressOnnxError, DataError, ModelFileError
from compress_onnx.graph_passes.planning.plan import CompressionPlan
from compress_onnx.pipeline.measure.benchmark import benchmark
from compress_onnx.pipeline.measure.providers import measure_on
from compress_onnx.pipeline.recipe import BenchmarkSpec
from compress_onnx.pipeline.results import Benchmark
from compress_onnx.pipeline.runtime.inputs import (
    constants_among,
    load_structure,
    model_inputs,
    synthetic_feeds,
)
from compress_onnx.pipeline.runtime.progress import Progress, Silent
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import Provider, SessionSpec, require_provider

T = TypeVar("T")


class Case(NamedTuple):
    """One combination of a grid; ``name`` says what differs: ``8x128``, ``8x128.t2``, ``t2``."""

    name: str
    batch: int
    length: int
    threads: int | None


def cases_of(settings: BenchmarkSpec, threads: Sequence[int] = ()) -> tuple[Case, ...]:
    """Every combination of batch, length and number of threads.

    Args:
        settings: the sizes, and the threads where none are given.
        threads: how many, each in turn.
    """
    shapes = list(product(settings.batch, settings.length))
    counts: Sequence[int | None] = threads or [settings.threads]

    def name(batch: int, length: int, count: int | None) -> str:
        shape = [f"{batch}x{length}"] if len(shapes) > 1 else []
        return ".".join([*shape, *([f"t{count}"] if len(counts) > 1 else [])])

    return tuple(
        Case(name(*shape, count), *shape, count) for shape, count in product(shapes, counts)
    )


def benchmark_feeds(
    model: Path,
    settings: BenchmarkSpec,
    *,
    samples: Samples | None,
    seed: int,
    case: Case | None = None,
) -> dict[str, Array]:
    """The inputs that ``model`` is measured on.

    Args:
        model: what takes them.
        settings: their batch and length.
        samples: rows to feed; made-up inputs without.
        seed: of made-up inputs.
        case: which of the sizes; the first unless it is given.

    Raises:
        DataError: ``samples`` does not fit the model.
    """
    case = case or cases_of(settings)[0]
    return synthetic_feeds(
        model_inputs(load_structure(model)),
        batch=case.batch,
        length=case.length,
        seed=seed,
        samples=samples,
    )


def feeds_by_shape(
    model: Path, settings: BenchmarkSpec, *, samples: Samples | None, seed: int
) -> dict[str, dict[str, Array]]:
    """:func:`benchmark_feeds` of each case, by its name.

    Cases that come to the same shapes, as where the model or the samples fix a size, are one: the
    first. A single one has no name.
    """
    found: dict[str, tuple[str, dict[str, Array]]] = {}
    for case in cases_of(settings):
        feeds = benchmark_feeds(model, settings, samples=samples, seed=seed, case=case)
        found.setdefault(shapes_of(feeds), (case.name, feeds))
    if len(found) > 1:
        return dict(found.values())
    (_, feeds) = next(iter(found.values()))
    return {"": feeds}


def shapes_of(feeds: Mapping[str, Array]) -> str:
    """The inputs with their shapes, in words."""
    return ", ".join(f"{n} {'x'.join(map(str, a.shape)) or 'scalar'}" for n, a in feeds.items())


def first_that_runs(
    feeds: Iterable[Mapping[str, Array]], action: Callable[[Mapping[str, Array]], T]
) -> tuple[Mapping[str, Array], T] | str:
    """Carry out ``action`` on inputs of several sizes until the model runs on one.

    Returns:
        The inputs with what came of them; or in words, why the model ran on none.
    """
    reason = ""
    try:
        for inputs in feeds:
            try:
                return inputs, action(inputs)
            except (DataError, ModelFileError) as problem:
                reason = reason or str(problem)
    except CompressOnnxError as problem:  # no inputs can be made up, or there is no such provider
        reason = str(problem)
    return reason


def measure_latency(
    reference: Path,
    candidate: Path,
    settings: BenchmarkSpec,
    *,
    threads: Sequence[int] = (),
    samples: Samples | None = None,
    plan: CompressionPlan | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[tuple[Benchmark, ...], dict[str, str]]:
    """Benchmark two models on the providers that ``settings`` names, at all its sizes.

    Args:
        reference: the original model.
        candidate: the compressed one.
        settings: provider, sizes and repetitions.
        threads: numbers of threads to measure each size with; empty takes that of ``settings``.
        samples: rows to feed; made-up inputs without.
        plan: says which nodes were changed, for the ideal speed-up.
        seed: of made-up inputs, of the order of runs, and of the intervals.
        progress: shows the rounds.

    Returns:
        The benchmarks, and a reason for each provider that ``auto`` could not measure.

    Raises:
        ProviderError: a provider that was asked for by name is not available.
    """
    ratios = (
        {node: s.parameters_after / s.parameters_before for s in plan.changed for node in s.nodes}
        if plan
        else None
    )

    def measure(provider: Provider) -> list[Benchmark]:
        require_provider(provider)
        return [measure_case(provider, case) for case in cases_of(settings, threads)]

    def measure_case(provider: Provider, case: Case) -> Benchmark:
        feeds = benchmark_feeds(reference, settings, samples=samples, seed=seed, case=case)
        step = f"benchmark on {provider}{f', {case.name}' if case.name else ''}"
        with (progress or Silent()).step(step, settings.iterations) as update:
            return benchmark(
                reference,
                candidate,
                feeds,
                SessionSpec(provider=provider, threads=case.threads),
                warmup=settings.warmup,
                iterations=settings.iterations,
                seed=seed,
                case=case.name,
                samples=_samples_in(feeds, reference),
                sites=ratios,
                progress=update,
            )

    found, unmeasured = measure_on([settings.provider], measure)
    return tuple(row for rows in found for row in rows), unmeasured


def _samples_in(feeds: dict[str, Array], model: Path) -> int | None:
    """How many samples one run takes; None where the inputs do not agree on that."""
    constants = constants_among(feeds, model_inputs(load_structure(model)))
    lengths = {len(array) for name, array in feeds.items() if name not in constants}
    return lengths.pop() if len(lengths) == 1 else None
