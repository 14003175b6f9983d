"""Run all contestants over one model at several sizes, each timed, validated and recovered."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.cache import ArrayCache
from compress_onnx.pipeline.recipe import Recipe, RecoverySpec, read_recipe
from compress_onnx.pipeline.recipes.experiment import settings_of
from compress_onnx.pipeline.recipes.single import ModelExperiment, prepare_model
from compress_onnx.pipeline.recover.recover import Lessons, recover_file
from compress_onnx.pipeline.results import Result
from studies.peers.asvd4llm import ASVD4LLM
from studies.peers.contestant import Compressor, Contestant
from studies.peers.flar_svd import FLAR_SVD
from studies.peers.fwsvd import FWSVD
from studies.peers.laboratory import Laboratory
from studies.peers.ours import OURS
from studies.peers.svd_llm import SVD_LLM

CONTESTANTS: tuple[Contestant, ...] = (OURS[0], FWSVD, ASVD4LLM, SVD_LLM, FLAR_SVD, *OURS[1:])
MODELS = Path(__file__).parents[3] / "models"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Course:
    """What is run over one model.

    Attributes:
        recipe: the model and its data.
        shares: of the selected parameters, that are kept.
        recovered: at which of them recovery follows.
        steps: of recovery.
        probes: calibration samples that searches measure on.
        limit: at most so many samples of each split; None takes all that the recipe says.
    """

    recipe: Path
    shares: tuple[float, ...]
    recovered: tuple[float, ...]
    steps: int
    probes: int
    limit: int | None = None


MINILM = Course(MODELS / "minilm-lowrank.yaml", (0.7, 0.5, 0.33), (0.5,), steps=40, probes=32)
# At 70 % and 50 % the digits have nothing left to recover.
DIGITS = Course(
    MODELS / "digits-vit.yaml", (0.7, 0.5, 0.33, 0.19), (0.33, 0.19), steps=200, probes=256
)
COURSES = {"digits-vit": DIGITS, "minilm": MINILM}
QUICK = Course(MODELS / "digits-vit.yaml", (0.5,), (0.5,), steps=3, probes=32, limit=96)


class Figures(Result):
    """What validation measured: the task's metrics, and ‖c − r‖ / ‖r‖ of the worst output."""

    metrics: dict[str, float]
    relative_l2: float


class Recovered(Result):
    """The same after training, and the seconds that took."""

    figures: Figures
    seconds: float


class Entry(Result):
    """One contestant at one size; ``seconds`` are those that depend on the size."""

    share: float
    kept: float
    seconds: float
    figures: Figures
    recovered: Recovered | None = None


class Standing(Result):
    """One contestant: the seconds of what it learns once, and its entries, by falling share."""

    name: str
    ours: bool
    source: str
    activations: bool
    learn_s: float
    entries: tuple[Entry, ...]


class CourseReport(Result):
    """All contestants on one model.

    Attributes:
        name: of the recipe.
        kind: of its metric.
        layers, parameters: how many weights are selected, and what they hold.
        multiple: of the ranks.
        calibration, validation: the data, in words.
        labelled: whether the calibration data has labels.
        probes: see :class:`Course`.
        seed: of the recipe.
        steps: of recovery.
        calibrate_s: collecting activation statistics, once for all.
    """

    name: str
    kind: str
    layers: int
    parameters: int
    multiple: int
    calibration: str
    validation: str
    labelled: bool
    probes: int
    seed: int
    steps: int
    calibrate_s: float
    standings: tuple[Standing, ...]

    @property
    def recovered(self) -> bool:
        """Whether recovery was measured at any size."""
        return any(e.recovered for standing in self.standings for e in standing.entries)


def run_course(
    course: Course,
    contestants: Sequence[Contestant] = CONTESTANTS,
    cache: ArrayCache | None = None,
) -> CourseReport:
    """Run ``contestants`` over one model.

    Args:
        course: which model, and how far.
        contestants: in the order of the rows.
        cache: where activations and our gradients are taken from; None computes them, and times
            that.
    """
    recipe = _limited(read_recipe(course.recipe), course.limit)
    with TemporaryDirectory(prefix="compress-onnx-peers-") as folder:
        work = Path(folder)
        (work / "reference").mkdir()
        experiment = prepare_model(
            recipe,
            work / "reference",
            base_dir=course.recipe.parent,
            settings=settings_of(recipe, RunSettings(cache=cache, allow_code=True)),
        )
        laboratory = Laboratory(experiment, course.probes)
        standings = tuple(_standing(c, laboratory, course, work) for c in contestants)
        assert experiment.learned.calibration is not None
        assert experiment.held_out is not None
        assert recipe.metric is not None
        return CourseReport(
            name=recipe.name,
            kind=recipe.metric.kind,
            layers=len(laboratory.layers),
            parameters=sum(candidate.dense for candidate in laboratory.candidates),
            multiple=laboratory.multiple,
            calibration=experiment.learned.calibration.origin,
            validation=f"{len(experiment.held_out)} samples of {experiment.held_out.origin}",
            labelled=laboratory.samples.labels is not None,
            probes=min(course.probes, len(laboratory.samples)),
            seed=recipe.seed,
            steps=course.steps,
            calibrate_s=experiment.watch.timings_s["calibrate"],
            standings=standings,
        )


def _limited(recipe: Recipe, limit: int | None) -> Recipe:
    if limit is None:
        return recipe
    data = {"calibration": recipe.calibration, "validation": recipe.validation}
    fewer = {k: spec.model_copy(update={"limit": limit}) for k, spec in data.items() if spec}
    return recipe.model_copy(update=fewer)


def _standing(
    contestant: Contestant, laboratory: Laboratory, course: Course, work: Path
) -> Standing:
    begun = time.perf_counter()
    compress = contestant.learn(laboratory)
    learn_s = time.perf_counter() - begun
    logger.info("%s: learned in %.1f s", contestant.name, learn_s)
    entries = []
    for share in course.shares:
        entry = _entry(compress, laboratory.experiment, course, share, work)
        logger.info("%s at %.0f %%: %s", contestant.name, 100 * share, entry.figures.metrics)
        entries.append(entry)
    return Standing(
        name=contestant.name,
        ours=contestant.ours,
        source=contestant.source,
        activations=contestant.activations,
        learn_s=learn_s,
        entries=tuple(entries),
    )


def _entry(
    compress: Compressor, experiment: ModelExperiment, course: Course, share: float, work: Path
) -> Entry:
    with TemporaryDirectory(dir=work) as folder:
        candidate = Path(folder) / "candidate.onnx"
        begun = time.perf_counter()
        plan = compress(share).write(candidate)
        seconds = time.perf_counter() - begun
        return Entry(
            share=share,
            kept=plan.parameters_after / plan.parameters_before,
            seconds=seconds,
            figures=_figures(experiment, candidate),
            recovered=(
                _recover(experiment, candidate, course.steps) if share in course.recovered else None
            ),
        )


def _recover(experiment: ModelExperiment, candidate: Path, steps: int) -> Recovered:
    settings, samples = experiment.settings, experiment.learned.samples
    assert samples is not None
    report = recover_file(
        experiment.reference,
        candidate,
        Lessons(samples),
        RecoverySpec(budget=None, steps=steps),
        seed=settings.seed,
        spec=settings.session,
        batch_size=settings.batch_size,
    )
    return Recovered(figures=_figures(experiment, candidate), seconds=report.seconds)


def _figures(experiment: ModelExperiment, candidate: Path) -> Figures:
    validation = experiment.validate(candidate)
    assert validation is not None
    return Figures(
        metrics=validation.metrics,
        relative_l2=max(output.relative_l2 for output in validation.outputs),
    )
