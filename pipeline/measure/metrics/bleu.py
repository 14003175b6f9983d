"""How good translations are: BLEU and chrF, as sacrebleu computes them.

Both are of a whole corpus, on untokenized text, with sacrebleu's defaults (BLEU: tokenizer 13a,
mixed case, exponential smoothing; chrF: character 6-grams, β = 2), so that figures compare with
published ones. Papers average them over languages, each of which counts the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from compress_onnx.graph_passes.errors import DataError, MissingDependencyError
from compress_onnx.pipeline.results import TranslationScore


def score_translations(found: Sequence[str], references: Sequence[str]) -> TranslationScore:
    """Compare translations with one reference each.

    Args:
        found: what the model made, detokenized.
        references: what a person made of the same sentences, in the same order.

    Raises:
        DataError: there are none, or not as many of one as of the other.
        MissingDependencyError: sacrebleu is not installed.
    """
    if len(found) != len(references) or not found:
        raise DataError(
            f"{len(found)} translations cannot be compared with {len(references)} references: "
            "give one reference for each, and at least one"
        )
    try:
        import sacrebleu
    except ImportError as error:
        raise MissingDependencyError(
            'BLEU and chrF need sacrebleu: pip install "compress-onnx[recipes]"'
        ) from error
    bleu = sacrebleu.corpus_bleu(list(found), [list(references)])
    chrf = sacrebleu.corpus_chrf(list(found), [list(references)])
    return TranslationScore(sentences=len(found), bleu=float(bleu.score), chrf=float(chrf.score))


def mean_score(scores: Collection[TranslationScore]) -> TranslationScore:
    """The mean over languages, whatever their numbers of sentences; ``sentences`` add up.

    Raises:
        DataError: there are no scores.
    """
    if not scores:
        raise DataError("a mean over languages needs at least one language")
    return TranslationScore(
        sentences=sum(score.sentences for score in scores),
        bleu=sum(score.bleu for score in scores) / len(scores),
        chrf=sum(score.chrf for score in scores) / len(scores),
    )
