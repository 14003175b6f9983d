"""ViT-B/16-224 with random weights: right for latency and file size, never for accuracy."""

from __future__ import annotations

from compress_onnx.graph_passes.planning.request import Selection
from compress_onnx.pipeline.recipe import BenchmarkSpec, Compression, Recipe, SourceSpec
from compress_onnx.pipeline.recipes.single import ModelExperiment
from compress_onnx.pipeline.report.formats import MISSING, size
from compress_onnx.pipeline.results import SweepRow
from studies.reproduction.measuring import kept, measure, run_time_text
from studies.reproduction.workplace import Workplace

LAYERS = 12
QUICK_LAYERS = 1
LATENCY_HEADER = ("asked", "parameters kept", "run time", "ideal", "file")

_NAME = "vit-base"


def vit_base(place: Workplace) -> tuple[ModelExperiment, str]:
    """The model, exported, and what a table has to say about it."""
    from transformers import ViTConfig, ViTForImageClassification

    layers = QUICK_LAYERS if place.quick else LAYERS
    if _NAME not in place.prepared:
        folder = place.work / _NAME
        config = ViTConfig(num_hidden_layers=layers, num_labels=1000)
        ViTForImageClassification(config).save_pretrained(folder)
        recipe = Recipe(
            name=_NAME,
            source=SourceSpec(model=str(folder), task="image-classification"),
            compression=Compression(select=Selection(exclude=("classifier",))),
            benchmark=place.benchmark(BenchmarkSpec(batch=1, warmup=2, iterations=20)),
        )
        place.prepared[_NAME] = place.prepare(recipe, folder)
    note = (
        f"ViT-B/16-224 with random weights, {layers} layers, one image, SVD; run time over the "
        "original's, and what it would be if it followed the FLOPs"
    )
    return place.prepared[_NAME], note


def measure_full_size(
    experiment: ModelExperiment, budget: float, select: Selection | None = None
) -> SweepRow:
    """Its latency at a share of the parameters, or from 1 on at a rank."""
    chosen = select or experiment.recipe.compression.select
    if budget < 1:
        return measure(experiment, "svd", benchmark=True, params=budget, select=chosen)
    return measure(experiment, "svd", benchmark=True, rank=int(budget), select=chosen)


def latency_cells(row: SweepRow) -> list[str]:
    """The columns of :data:`LATENCY_HEADER` after the first."""
    assert row.size is not None
    ideal = row.benchmarks[0].ideal_speedup
    return [
        kept(row),
        run_time_text(row),
        MISSING if ideal is None else f"{1 / ideal:.2f}",
        size(row.size.candidate_bytes),
    ]
