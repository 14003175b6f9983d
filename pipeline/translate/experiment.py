"""A translation recipe made ready: the graphs, the sentences, and the steps on top of them.

An encoder–decoder is several graphs and is measured by the texts that it generates, so that its way
is its own, of the shape of :mod:`pipeline.recipes.experiment`: :func:`prepare_translation` exports,
loads and tokenizes once; what a run does once and a sweep or a study for every variant are methods.

What does not apply to such a recipe is refused: the search for the smallest model (it looks at one
graph's outputs), budgets of FLOPs and latency (a decoder runs as often as a
sentence has tokens), shared siblings, and of the benchmark all but provider and threads.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compress_onnx.graph_passes.errors import NothingToCompressError, RequestError
from compress_onnx.graph_passes.planning.request import QUANTITIES, CompressionSpec
from compress_onnx.pipeline.data.pairs import SentencePair
from compress_onnx.pipeline.data.parallel import load_pairs, origin_of
from compress_onnx.pipeline.deploy.translation_card import write_translation_card
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.export.dependencies import require_export_extra
from compress_onnx.pipeline.export.huggingface import checkpoint_of
from compress_onnx.pipeline.export.permission import require_permission_of
from compress_onnx.pipeline.export.source import FolderSource, HubSource, resolve_source
from compress_onnx.pipeline.files.model_file import model_size
from compress_onnx.pipeline.measure.benchmark import speedup, speedup_interval
from compress_onnx.pipeline.measure.gates import check_gates, translation_quantities
from compress_onnx.pipeline.measure.metrics.bleu import mean_score, score_translations
from compress_onnx.pipeline.recipe import (
    ParallelData,
    PythonData,
    Recipe,
    RecoverySpec,
    TranslationMetric,
)
from compress_onnx.pipeline.report.heading import Heading
from compress_onnx.pipeline.report.writer import write_report
from compress_onnx.pipeline.results import (
    GenerationTiming,
    RecoveryReport,
    SizeReport,
    SweepRow,
    TranslationReport,
    TranslationScores,
)
from compress_onnx.pipeline.runtime.progress import Update
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.stopwatch import Stopwatch
from compress_onnx.pipeline.translate.export_parts import ExportedParts, export_encoder_decoder
from compress_onnx.pipeline.translate.generation import DECODER_MERGED, ENCODER, TextGenerator
from compress_onnx.pipeline.translate.languages import LanguageTokenizer
from compress_onnx.pipeline.translate.parts import (
    LearnedParts,
    PartPlans,
    PartSamples,
    learn_parts,
    part_samples,
)
from compress_onnx.pipeline.translate.recovery import recover_parts, sentence_lessons

_COLUMNS = ("bleu", "chrf", "bleu_drop", "chrf_drop")
_PARTS = (ENCODER, DECODER_MERGED)
_TIMED_SETTINGS = {"provider", "threads"}


class Translations(NamedTuple):
    """What both models made of the validation sentences, and how long they took."""

    reference: list[str]
    candidate: list[str]
    timing: GenerationTiming


class Made(NamedTuple):
    """What became of the sites, and of the training, where there was one."""

    plans: PartPlans
    recovery: RecoveryReport | None = None


@dataclass(frozen=True, eq=False)
class TranslationExperiment:
    """A translation recipe with everything in place to compress its model.

    Attributes:
        recipe: what to do.
        metric: its metric.
        checkpoint: what the reference was exported from.
        exported: the reference's graphs.
        languages: its tokenizer.
        held_out: validation pairs, ordered by language.
        validation: what they are, in words.
        learned: all that is known about the graphs.
        calibration: the data that it was learned from, in words; None without.
        lessons: what recovery trains on; None without.
        settings: how graphs run.
        watch: times the steps.
    """

    recipe: Recipe
    metric: TranslationMetric
    checkpoint: Path
    exported: ExportedParts
    languages: LanguageTokenizer
    held_out: Sequence[SentencePair]
    validation: str
    learned: LearnedParts
    calibration: str | None
    lessons: Samples | None
    settings: RunSettings
    watch: Stopwatch
    _original_scores: dict[int | None, TranslationScores] = field(default_factory=dict, repr=False)

    @property
    def reference(self) -> Path:
        """The folder of the model as exported."""
        return self.exported.folder

    def compress(self, request: CompressionSpec, folder: Path) -> PartPlans:
        """Compress the reference as ``request`` says into the existing folder ``folder``.

        Raises:
            RequestError: the request makes no sense for a part, or for any encoder–decoder.
            NothingToCompressError: no weight of a part can be factored with a gain.
        """
        return self.make(request, folder).plans

    def make(
        self, request: CompressionSpec, folder: Path, recovery: RecoverySpec | None = None
    ) -> Made:
        """:meth:`compress`, and train what came out as ``recovery`` says.

        Raises:
            CompressOnnxError: as :func:`~pipeline.translate.recovery.recover_parts` raises.
        """
        _require_applicable(request)
        with self.watch.measure("compress"):
            parts = self.learned.compressed(request)
            plans = self.learned.write(parts, folder)
        if recovery is None:
            return Made(plans)
        assert self.lessons is not None  # whoever asks for recovery has loaded them
        with self.watch.measure("recover"):
            decoder = parts.decoder.model
            report = recover_parts(
                self.reference,
                folder,
                decoder,
                lessons=self.lessons,
                recovery=recovery,
                settings=self.settings,
            )
        return Made(plans, report)

    def fill(self, bundle: Path, heading: Heading) -> TranslationReport:
        """Compress, measure, and write everything but the manifest into ``bundle``.

        It then holds both graphs with configuration and tokenizer, as optimum's
        ``ORTModelForSeq2SeqLM`` loads them, and a model card.

        Raises:
            CompressOnnxError: it cannot be carried out.
        """
        recipe = self.recipe
        plans, recovery = self.make(recipe.compression, bundle, recipe.recovery)
        texts = self.race(bundle)
        reference, candidate = (self.scores(found) for found in texts[:2])
        timing = texts.timing if recipe.benchmark is not None else None
        size = self.size(bundle)
        quantities = translation_quantities(reference, candidate, size, timing)
        learned = (*self.exported.notes, *self.learned.notes)
        notes = (*learned, *plans.encoder.notes, *plans.decoder.notes)
        report = TranslationReport(
            **heading.fields(),
            command=heading.command,
            seed=recipe.seed,
            export=self.exported.report,
            calibration=self.calibration,
            encoder=plans.encoder,
            decoder=plans.decoder,
            size=size,
            validation=self.validation,
            beams=self.metric.beams,
            reference=reference,
            candidate=candidate,
            timing=timing,
            recovery=recovery,
            gates=check_gates(recipe.gates, quantities),
            timings_s=self.watch.timings_s,
            notes=tuple(dict.fromkeys(notes)),
        )
        write_report(report, bundle)
        for name, plan in (("encoder", plans.encoder), ("decoder", plans.decoder)):
            text = plan.model_dump_json(indent=2)
            (bundle / f"{name}-plan.json").write_text(text, encoding="utf-8")
        write_translation_card(report, self.checkpoint, bundle)
        return report

    def row(
        self, variant: CompressionSpec, beams: int | None = None, *, train: bool = True
    ) -> SweepRow:
        """Compress in one way, and score the translations.

        Args:
            variant: how to compress.
            beams: hypotheses that the search keeps; as the recipe says when None.
            train: whether the recipe's recovery follows, where it has one.

        Raises:
            RequestError: the variant makes no sense for this model.
        """
        with TemporaryDirectory(prefix="compress-onnx-") as work:
            folder = Path(work)
            try:
                recovery = self.recipe.recovery if train else None
                plans = self.make(variant, folder, recovery).plans
            except NothingToCompressError as error:
                return SweepRow(variant=variant, problem=str(error))
            scores = self.scores(self.translate(folder, beams))
            size = self.size(folder)
        parts = (plans.encoder, plans.decoder)
        ranks = [site.rank for plan in parts for site in plan.factored if site.rank is not None]
        quantities = translation_quantities(self.original_scores(beams), scores, size)
        return SweepRow(
            variant=variant.model_copy(update={"allocation": plans.encoder.allocation}),
            ranks=(min(ranks), max(ranks)),
            parameters_before=sum(plan.parameters_before for plan in parts),
            parameters_after=sum(plan.parameters_after for plan in parts),
            size=size,
            metrics={name: quantities[name] for name in _COLUMNS},
        )

    def original_scores(self, beams: int | None = None) -> TranslationScores:
        """The scores of the original, which translates once for each number of beams."""
        if beams not in self._original_scores:
            self._original_scores[beams] = self.scores(self.translate(self.reference, beams))
        return self._original_scores[beams]

    def translate(self, folder: Path, beams: int | None = None) -> list[str]:
        """What the model in ``folder`` makes of the validation sentences.

        Args:
            folder: the reference, or what :meth:`compress` filled.
            beams: hypotheses that the search keeps; as the recipe says when None.
        """
        generator = self._generator(folder)
        found = [""] * len(self.held_out)
        with self._translating() as update:
            for done, rows in self._batches():
                _put(found, rows, self._generate(generator, rows, beams))
                update(done)
        return found

    def race(self, candidate: Path) -> Translations:
        """Let both models translate the validation sentences, a batch each in random order."""
        generators = [self._generator(folder) for folder in (self.reference, candidate)]
        batches = list(self._batches())
        for generator in generators:  # buffers are allocated in the first run
            self._generate(generator, batches[0][1])
        texts = [[""] * len(self.held_out) for _ in generators]
        seconds = np.zeros((len(batches), 2))
        rng = np.random.default_rng(self.recipe.seed)
        with self._translating() as update:
            for number, (done, rows) in enumerate(batches):
                for model in rng.permutation(2):
                    start = time.perf_counter()
                    found = self._generate(generators[model], rows)
                    seconds[number, model] = time.perf_counter() - start
                    _put(texts[model], rows, found)
                update(done)
        return Translations(texts[0], texts[1], self._timing(seconds, texts, rng))

    def scores(self, texts: Sequence[str]) -> TranslationScores:
        """How good translations of the validation sentences are."""
        by_language = {
            language: score_translations(
                [texts[row] for row in rows], [self.held_out[row].target for row in rows]
            )
            for language, rows in _rows_by_language(self.held_out).items()
        }
        return TranslationScores(languages=by_language, mean=mean_score(by_language.values()))

    def size(self, candidate: Path) -> SizeReport:
        """Both graphs together: the encoder and the merged decoder."""
        parts = [model_size(self.reference / part, candidate / part) for part in _PARTS]
        return SizeReport(
            **{name: sum(getattr(p, name) for p in parts) for name in SizeReport.model_fields}
        )

    def _generator(self, folder: Path) -> TextGenerator:
        return TextGenerator(folder, self.settings.session, self.languages.tokenizer)

    def _generate(
        self, generator: TextGenerator, rows: Sequence[int], beams: int | None = None
    ) -> list[str]:
        pairs = [self.held_out[row] for row in rows]
        forced_token = self.languages.turn_to(pairs[0])
        return generator.generate(
            [self.languages.prompt(pair) for pair in pairs],
            beams=beams or self.metric.beams,
            max_new_tokens=self.metric.max_new_tokens,
            batch_size=len(pairs),
            forced_token=forced_token,
        )

    def _batches(self) -> Iterator[tuple[int, list[int]]]:
        """Rows of one language and of like lengths, and how many will be done after them."""
        done = 0
        for rows in _rows_by_language(self.held_out).values():
            ordered = sorted(rows, key=lambda row: len(self.held_out[row].source))
            for start in range(0, len(ordered), self.recipe.batch_size):
                batch = ordered[start : start + self.recipe.batch_size]
                done += len(batch)
                yield done, batch

    def _timing(
        self, seconds: NDArray[np.float64], texts: Sequence[Sequence[str]], rng: np.random.Generator
    ) -> GenerationTiming:
        reference_s, candidate_s = (float(total) for total in seconds.sum(axis=0))
        characters = [sum(map(len, found)) for found in texts]
        interval = speedup_interval(seconds, rng, np.sum)
        return GenerationTiming(
            provider="cpu",
            threads=self.settings.session.thread_count,
            batch_size=self.recipe.batch_size,
            reference_s=reference_s,
            candidate_s=candidate_s,
            reference_texts_per_s=len(self.held_out) / reference_s,
            candidate_texts_per_s=len(self.held_out) / candidate_s,
            speedup=speedup(seconds, np.sum),
            speedup_low=interval.low,
            speedup_high=interval.high,
            length_ratio=characters[1] / max(characters[0], 1),
        )

    @contextmanager
    def _translating(self) -> Iterator[Update]:
        with (
            self.watch.measure("translate"),
            self.settings.progress.step("translate", len(self.held_out)) as update,
        ):
            yield update


def prepare_translation(
    recipe: Recipe,
    folder: Path,
    *,
    base_dir: Path,
    settings: RunSettings,
) -> TranslationExperiment:
    """Export the model of ``recipe``, load its sentences, and tokenize those to calibrate on.

    Args:
        recipe: its metric is ``translation``.
        folder: an empty folder for the exported graphs.
        base_dir: what relative paths in the recipe are relative to.
        settings: how graphs run.

    Raises:
        RequestError: the recipe contradicts itself, names code that may not run, or asks for what
            does not apply.
        CompressOnnxError: the model or the data cannot be had.
    """
    metric = _require_translation(recipe)
    assert recipe.validation is not None  # see there
    watch = Stopwatch()
    require_permission_of(recipe, base_dir, allow_code=settings.allow_code)
    source = resolve_source(recipe.source, base_dir)
    if not isinstance(source, FolderSource | HubSource):
        raise RequestError(
            f"recipe {recipe.name}: translation needs the exports of an encoder and a decoder: use "
            "a Hugging Face model as source"
        )
    require_export_extra("torch", "transformers", "optimum")
    with watch.measure("load data"):
        checkpoint = checkpoint_of(source, recipe.source.revision)
        languages = LanguageTokenizer(checkpoint, metric)
        held_out = load_pairs(
            recipe.validation,
            base_dir=base_dir,
            seed=recipe.seed,
            allow_code=settings.allow_code,
        )
        lessons = _lessons(recipe, base_dir, settings.allow_code)
        languages.require([*held_out, *lessons])
    with watch.measure("export"), settings.progress.step("export"):
        exported = export_encoder_decoder(checkpoint, recipe.source, folder, seed=recipe.seed)
    if isinstance(source, HubSource):
        known = exported.report.model_copy(update={"hub_id": source.repo_id})
        exported = replace(exported, report=known)
    samples = _samples(recipe, exported.folder, languages, lessons, settings)
    taught = _taught(
        recipe, exported.folder, languages, lessons, base_dir=base_dir, settings=settings
    )
    with watch.measure("calibrate"):
        learned = learn_parts(exported.folder, samples, settings)
    return TranslationExperiment(
        recipe=recipe,
        metric=metric,
        checkpoint=checkpoint,
        exported=exported,
        languages=languages,
        held_out=held_out,
        validation=origin_of(recipe.validation, held_out),
        learned=learned,
        calibration=origin_of(recipe.calibration, lessons) if recipe.calibration else None,
        lessons=taught,
        settings=settings,
        watch=watch,
    )


def _lessons(recipe: Recipe, base_dir: Path, allow_code: bool) -> list[SentencePair]:
    if recipe.calibration is None:
        return []
    return load_pairs(
        recipe.calibration, base_dir=base_dir, seed=recipe.seed, allow_code=allow_code
    )


def _samples(
    recipe: Recipe,
    folder: Path,
    languages: LanguageTokenizer,
    lessons: Sequence[SentencePair],
    settings: RunSettings,
) -> PartSamples | None:
    if not lessons:
        return None
    assert isinstance(recipe.calibration, ParallelData | PythonData)  # see load_pairs
    max_tokens = recipe.calibration.max_tokens
    spec = settings.session
    return part_samples(
        folder,
        languages.sources(lessons, max_tokens),
        languages.targets(lessons, max_tokens),
        start_token=TextGenerator(folder, spec, languages.tokenizer).start_token,
        spec=spec,
    )


def _taught(
    recipe: Recipe,
    folder: Path,
    languages: LanguageTokenizer,
    lessons: Sequence[SentencePair],
    *,
    base_dir: Path,
    settings: RunSettings,
) -> Samples | None:
    """What recovery trains on: its own data, else those of the calibration."""
    if recipe.recovery is None:
        return None
    data = recipe.recovery.data or recipe.calibration
    assert isinstance(data, ParallelData | PythonData)  # see _require_lessons
    pairs = lessons
    if recipe.recovery.data is not None:
        pairs = load_pairs(
            data, base_dir=base_dir, seed=recipe.seed, allow_code=settings.allow_code
        )
        languages.require(pairs)
    return sentence_lessons(
        languages.sources(pairs, data.max_tokens),
        languages.targets(pairs, data.max_tokens),
        TextGenerator(folder, settings.session, languages.tokenizer).start_token,
    )


def _require_translation(recipe: Recipe) -> TranslationMetric:
    """The recipe's metric, once nothing in the recipe contradicts it."""
    metric = recipe.metric
    refusal = f"recipe {recipe.name}: "
    if not isinstance(metric, TranslationMetric):
        raise RequestError(f"{refusal}this needs the metric translation")
    if recipe.validation is None:
        raise RequestError(f"{refusal}a metric needs data to be measured on: add validation")
    for name in ("max_drop", "mask"):
        if getattr(recipe, name) is not None:
            raise RequestError(f"{refusal}{name} does not apply to translation: drop it")
    if recipe.compression.optimize is not None:
        raise RequestError(f"{refusal}optimize does not apply to translation: drop it")
    if recipe.benchmark is not None:
        given = sorted(recipe.benchmark.model_fields_set - _TIMED_SETTINGS)
        device = recipe.benchmark.device
        if given or device != "cpu":
            raise RequestError(
                f"{refusal}translation is timed on the CPU and on the validation sentences, "
                f"batch_size at a time: drop "
                f"{', '.join(given) or f'provider {device}'} from benchmark"
            )
    _require_applicable(recipe.compression)
    if recipe.recovery is not None:
        _require_lessons(recipe, recipe.recovery)
    return metric


def _require_lessons(recipe: Recipe, recovery: RecoverySpec) -> None:
    if recovery.held_out is not None:
        raise RequestError(
            f"recipe {recipe.name}: recovery of a translation holds a part of its own data "
            "out: drop held_out"
        )
    if not isinstance(recovery.data or recipe.calibration, ParallelData | PythonData):
        raise RequestError(
            f"recipe {recipe.name}: recovery needs sentences with their translations: add "
            "calibration, or data to it"
        )
    if recipe.compression.store != "same":
        raise RequestError(
            f"recipe {recipe.name}: recovery trains float32 factors, and the store "
            f"{recipe.compression.store} rounds them: drop one"
        )


def _require_applicable(request: CompressionSpec) -> None:
    if request.budget in {"flops", "latency"} and request.rank is None:
        raise RequestError(
            f"a budget of {QUANTITIES[request.budget]} does not apply to translation, where the "
            "decoder runs once a token: give params, bytes or rank"
        )
    if request.siblings != "never":
        raise RequestError("siblings cannot share factors in an encoder with a decoder: drop it")


def _rows_by_language(pairs: Sequence[SentencePair]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, pair in enumerate(pairs):
        rows.setdefault(pair.language, []).append(row)
    return rows


def _put(texts: list[str], rows: Sequence[int], found: Sequence[str]) -> None:
    for row, text in zip(rows, found, strict=True):
        texts[row] = text
