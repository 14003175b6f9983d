"""Where experiments are run: prepared models, and how much is asked of them.

A model is a recipe: that of the published set-up where model and data can be had, or its twin,
which is at hand. A quick run takes the same ways through the code on less data and with fewer rows.
Its figures are no results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.cache import ArrayCache
from compress_onnx.pipeline.recipe import (
    BenchmarkSpec,
    DataSpec,
    MaskedData,
    Recipe,
    RecoverySpec,
    read_recipe,
)
from compress_onnx.pipeline.recipes.experiment import settings_of
from compress_onnx.pipeline.recipes.single import ModelExperiment, prepare_model

MODELS = Path(__file__).parents[3] / "models"
_QUICK_SAMPLES = 96
_QUICK_ITERATIONS = 5
_QUICK_STEPS = 3

Item = TypeVar("Item")


@dataclass(frozen=True)
class Models:
    """The recipes of an experiment, as ``models/NAME.yaml``.

    Attributes:
        hub: the published set-up.
        twin: what is run instead.
        description: of the twin.
    """

    hub: str
    twin: str
    description: str


@dataclass(frozen=True)
class Case:
    """An experiment that is run on one pair of models.

    Attributes:
        name: of the experiment.
        title: with its number.
        published: the document's set-up.
        models: that and its twin.
    """

    name: str
    title: str
    published: str
    models: Models


@dataclass
class Workplace:
    """What experiments share.

    Attributes:
        work: an empty folder for models; its content is not kept.
        pictures: where pictures go, which are kept.
        quick: on less data and with fewer rows.
        published: run the published set-ups and not their twins.
        cache: where calibration is kept between runs; None computes afresh.
        prepared: models by name.
    """

    work: Path
    pictures: Path
    quick: bool = False
    published: bool = False
    cache: ArrayCache | None = None
    prepared: dict[str, ModelExperiment] = field(default_factory=dict)

    def experiment(self, models: Models, recovery: RecoverySpec | None = None) -> ModelExperiment:
        """One of ``models``, exported and calibrated; without gates.

        Args:
            models: to choose from.
            recovery: for the twin, instead of what its recipe says; a published set-up trains as
                its own recipe says. None leaves training out.

        Raises:
            CompressOnnxError: model or data cannot be had.
        """
        name = models.hub if self.published else models.twin
        key = f"{name.replace('/', '-')}{'-recovery' if recovery else ''}"
        if key not in self.prepared:
            path = MODELS / f"{name}.yaml"
            recipe = read_recipe(path)
            if recovery is not None and self.published and recipe.recovery is not None:
                recovery = recipe.recovery
            changes = {"name": key, "recovery": recovery, "max_drop": None, "gates": ()}
            reduced = self.reduced(recipe.model_copy(update=changes))
            self.prepared[key] = self.prepare(reduced, path.parent)
        return self.prepared[key]

    def description(self, models: Models, experiment: ModelExperiment, accuracy: float) -> str:
        """What ``experiment`` runs, in words, with the ``accuracy`` of the original."""
        published = f"The published set-up, `models/{models.hub}.yaml`"
        assert experiment.held_out is not None
        return (
            f"{published if self.published else models.description} (accuracy {accuracy:.4f} on "
            f"{len(experiment.held_out)} held-out samples)"
        )

    def prepare(self, recipe: Recipe, base_dir: Path) -> ModelExperiment:
        """Export and calibrate ``recipe``, whose paths are relative to ``base_dir``."""
        folder = self.work / f"reference-{recipe.name}"
        folder.mkdir()
        settings = settings_of(recipe, RunSettings(cache=self.cache, allow_code=True))
        return prepare_model(recipe, folder, base_dir=base_dir, settings=settings)

    def reduced(self, recipe: Recipe) -> Recipe:
        """``recipe``, in a quick run with less data and shorter benchmarks."""
        if not self.quick:
            return recipe
        recovery = recipe.recovery and recipe.recovery.model_copy(
            update={
                "data": recipe.recovery.data and _limited(recipe.recovery.data),
                "budget": None,
                "steps": _QUICK_STEPS,
            }
        )
        return recipe.model_copy(
            update={
                "calibration": recipe.calibration and _limited(recipe.calibration),
                "validation": recipe.validation and _limited(recipe.validation),
                "benchmark": recipe.benchmark and self.benchmark(recipe.benchmark),
                "recovery": recovery,
            }
        )

    def some(self, items: Sequence[Item]) -> Sequence[Item]:
        """All ``items``, in a quick run the first and the last."""
        return items if not self.quick or len(items) < 3 else (items[0], items[-1])

    def steps(self, full: int) -> int:
        """Of training."""
        return _QUICK_STEPS if self.quick else full

    def benchmark(self, settings: BenchmarkSpec) -> BenchmarkSpec:
        """``settings``, in a quick run with the fewest iterations."""
        short = {"warmup": 1, "iterations": _QUICK_ITERATIONS}
        return settings.model_copy(update=short) if self.quick else settings


def _limited(data: DataSpec) -> DataSpec:
    if isinstance(data, MaskedData):
        fewer = data.sentences.model_copy(update={"limit": _QUICK_SAMPLES})
        return data.model_copy(update={"sentences": fewer})
    return data.model_copy(update={"limit": _QUICK_SAMPLES})
