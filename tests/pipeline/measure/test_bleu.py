"""BLEU and chrF, against figures worked out by hand."""

from __future__ import annotations

import math

import pytest

from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.measure.metrics.bleu import (
    mean_score,
    score_translations,
)
from compress_onnx.pipeline.results import TranslationScore

pytest.importorskip("sacrebleu")

REFERENCES = ["the cat sat on the mat today", "dogs run fast in the green park"]


def test_equal_texts_have_full_score():
    score = score_translations(REFERENCES, REFERENCES)
    assert score.sentences == 2
    assert score.bleu == pytest.approx(100)
    assert score.chrf == pytest.approx(100)


def test_bleu_by_hand():
    # 6 of 7 words, 4 of 6 pairs, 2 of 5 triples and 1 of 4 quadruples agree; lengths are equal.
    score = score_translations(["the cat sat by the mat today"], REFERENCES[:1])
    assert score.bleu == pytest.approx(100 * math.prod([6 / 7, 4 / 6, 2 / 5, 0.125]) ** 0.25)


def test_damage_costs_and_order_counts():
    swapped = score_translations(REFERENCES[::-1], REFERENCES)
    shuffled = score_translations(["mat the on sat cat the today", REFERENCES[1]], REFERENCES)
    assert swapped.bleu < 10
    assert swapped.bleu < shuffled.bleu < 80
    assert swapped.chrf < shuffled.chrf < 100
    assert score_translations(["", ""], REFERENCES).bleu == 0


def test_every_language_counts_the_same():
    mean = mean_score(
        [
            TranslationScore(sentences=900, bleu=10.0, chrf=30.0),
            TranslationScore(sentences=100, bleu=30.0, chrf=60.0),
        ]
    )
    assert mean == TranslationScore(sentences=1000, bleu=20.0, chrf=45.0)


@pytest.mark.parametrize(("found", "references"), [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_nothing_to_compare_is_an_error(found, references):
    with pytest.raises(DataError, match="one reference for each"):
        score_translations(found, references)
    with pytest.raises(DataError, match="at least one language"):
        mean_score([])
