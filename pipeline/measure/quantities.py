"""Which quantities a command or a recipe is going to measure, by name, before anything runs.

The names are those of :mod:`pipeline.measure.gates`. Outputs of a model that is not there yet are
written with a star: ``output.*.cosine``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from compress_onnx.pipeline.measure.latency import cases_of
from compress_onnx.pipeline.measure.metrics.embedding import FIGURES as EMBEDDING_FIGURES
from compress_onnx.pipeline.measure.metrics.retrieval import FIGURES as RETRIEVAL_FIGURES
from compress_onnx.pipeline.measure.providers import Requested
from compress_onnx.pipeline.recipe import (
    WORST,
    AccuracyMetric,
    BenchmarkSpec,
    EmbeddingMetric,
    MaskFillingMetric,
    MetricSpec,
    ParallelData,
    PythonData,
    Recipe,
    RetrievalMetric,
    TranslationMetric,
)
from compress_onnx.pipeline.runtime.session import EXECUTION_PROVIDERS

SIZES = ("size_ratio", "parameter_ratio", "candidate_bytes", "candidate_parameters")
_WORST_OUTPUT = ("max_abs", "relative_l2", "min_output_cosine")
_IN_BATCHES = ("batch_invariance", "batch_invariance_reference")
_OUTPUT = ("max_abs", "relative_l2", "cosine", "snr_db")
_LATENCY = (
    "speedup",
    "speedup_low",
    "latency_ratio",
    "p50_ms",
    "p90_ms",
    "p99_ms",
    "samples_per_s",
)
_LOAD = ("load_ms", "load_ratio", "load_ratio_high")
_RESIDENT = ("resident_bytes", "resident_ratio", "resident_ratio_high")
_TRANSLATION_SPEED = ("speedup", "speedup_low")
_SCORES = tuple(
    f"{score}{kind}" for score in ("bleu", "chrf") for kind in ("", "_reference", "_drop")
)
_ACCURACIES = (
    "accuracy",
    "accuracy_reference",
    "accuracy_drop",
    "accuracy_drop_low",
    "accuracy_drop_high",
    "agreement",
    "mcnemar_p",
)
_METRICS: Mapping[type[MetricSpec], tuple[str, ...]] = {
    EmbeddingMetric: EMBEDDING_FIGURES,
    AccuracyMetric: _ACCURACIES,
    MaskFillingMetric: _ACCURACIES,
    RetrievalMetric: RETRIEVAL_FIGURES,
}
_CPU: tuple[Requested, ...] = ("cpu",)
_ANY_OUTPUT = ("*",)


def validate_quantities(
    outputs: Iterable[str] = _ANY_OUTPUT,
    metric: MetricSpec | None = None,
    providers: Sequence[Requested] = _CPU,
    domains: Sequence[str] = (),
) -> tuple[str, ...]:
    """What ``validate`` measures.

    Args:
        outputs: names of the model's outputs.
        metric: what the outputs are held against besides each other.
        providers: where.
        domains: names of further sets of samples.
    """
    of_one = _of_one_set(outputs, metric)
    figures = (*of_one, *_IN_BATCHES)
    places = [*domains, WORST] if domains else []
    in_domains = [f"{figure}.{place}" for place in places for figure in of_one]
    return (*figures, *_on_providers(figures, providers), *in_domains, *SIZES)


def bench_quantities(
    settings: BenchmarkSpec | None = None, threads: Sequence[int] = (), *, loading: bool = True
) -> tuple[str, ...]:
    """What ``bench`` measures; the provider ``auto`` is whatever there is.

    Args:
        settings: provider and sizes.
        threads: numbers of threads, where there are several.
        loading: whether sessions and memory are measured.
    """
    settings = settings or BenchmarkSpec()
    requested = [settings.provider]
    cases = [case.name for case in cases_of(settings, threads) if case.name]
    speeds = _on_providers(_LATENCY, requested)
    loads = _on_providers(_LOAD, requested) if loading else ()
    resident = _on_providers(_RESIDENT, requested) if loading else ()
    resident = tuple(name for name in resident if not name.endswith(".cuda"))
    in_cases = (f"{speed}.{case}" for case in cases for speed in speeds)
    return (*speeds, *in_cases, *loads, *resident, *SIZES)


def recipe_quantities(recipe: Recipe, outputs: Iterable[str] = _ANY_OUTPUT) -> tuple[str, ...]:
    """What a run of ``recipe`` measures, of one graph or of one that translates.

    Args:
        recipe: what to do.
        outputs: names of the model's outputs, where it is there already.
    """
    if isinstance(recipe.metric, TranslationMetric):
        return _translation_quantities(recipe)
    providers = _CPU
    names: tuple[str, ...] = SIZES
    if recipe.benchmark is not None:
        names = bench_quantities(recipe.benchmark, loading=False)
        providers = (*_CPU, recipe.benchmark.provider)
    if recipe.validation is None:
        return names
    outputs = tuple(outputs)
    compared = validate_quantities(outputs, recipe.metric, providers, tuple(recipe.domains))
    return tuple(dict.fromkeys((*compared, *names)))


def metric_quantities(metric: MetricSpec | None) -> tuple[str, ...]:
    """What ``metric`` measures of one graph; nothing where there is none."""
    return () if metric is None else _METRICS[type(metric)]


def _of_one_set(outputs: Iterable[str], metric: MetricSpec | None) -> tuple[str, ...]:
    names = [f"output.{output}.{figure}" for output in outputs for figure in _OUTPUT]
    kept = () if metric is None else ("kept",)
    return (*metric_quantities(metric), *kept, *_WORST_OUTPUT, *names)


def _translation_quantities(recipe: Recipe) -> tuple[str, ...]:
    """Scores of all languages and of each, sizes, and how fast the CPU says it."""
    data = recipe.validation
    languages: tuple[str, ...] = ()
    if isinstance(data, ParallelData):
        languages = tuple(data.languages)
    elif isinstance(data, PythonData):  # by convention, a loader of pairs calls its argument so
        named = data.arguments.get("languages")
        languages = tuple(map(str, named)) if isinstance(named, list) else ()
    scores = [f"{score}.{language}" for language in languages for score in _SCORES]
    speeds = _on_providers(_TRANSLATION_SPEED, _CPU) if recipe.benchmark is not None else ()
    return (*_SCORES, "kept", *scores, *speeds, *SIZES)


def _on_providers(names: Iterable[str], requested: Iterable[Requested]) -> tuple[str, ...]:
    places = dict.fromkeys(
        place for name in requested for place in (EXECUTION_PROVIDERS if name == "auto" else [name])
    )
    return tuple(f"{name}.{place}" for place in places for name in names)
