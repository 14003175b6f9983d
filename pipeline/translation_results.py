"""What a run of a translation recipe measured: data only, like :mod:`pipeline.results`."""

from __future__ import annotations

from typing import Literal

from graph_passes.plan import CompressionPlan
from pipeline.metrics.translation import TranslationScore
from pipeline.results import Report, Result


class TranslationScores(Result):
    """BLEU and chrF, 0 to 100, by target language, and their means over languages."""

    languages: dict[str, TranslationScore]
    mean: TranslationScore


class GenerationTiming(Result):
    """How long both models took for the same texts, batch by batch in turn.

    Attributes:
        provider, threads: how the graphs ran.
        batch_size: texts at a time, at most.
        reference_s, candidate_s: seconds in all.
        reference_texts_per_s, candidate_texts_per_s: texts a second.
        speedup: ``reference_s`` over ``candidate_s``.
        speedup_low, speedup_high: a 95 % bootstrap interval of ``speedup`` over the batches.
        length_ratio: characters of the candidate's texts over those of the reference's. A model
            that says less takes less time: no merit, unless this is near 1.
    """

    provider: str
    threads: int
    batch_size: int
    reference_s: float
    candidate_s: float
    reference_texts_per_s: float
    candidate_texts_per_s: float
    speedup: float
    speedup_low: float
    speedup_high: float
    length_ratio: float


class TranslationReport(Report):
    """Everything about one run of the pipeline on an encoder–decoder that translates.

    Attributes:
        encoder, decoder: what became of the sites of each graph; ``size`` is of both graphs.
        validation: what was translated, in words.
        beams: hypotheses that the search kept.
        reference, candidate: how good the translations of each are.
        timing: None where no latency was asked for.
    """

    kind: Literal["translation"] = "translation"
    encoder: CompressionPlan
    decoder: CompressionPlan
    validation: str
    beams: int
    reference: TranslationScores
    candidate: TranslationScores
    timing: GenerationTiming | None = None
