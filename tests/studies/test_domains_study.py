"""The study of other domains: what its table calls the worst, and what it tries."""

from __future__ import annotations

from studies import domains

from compress_onnx.graph_passes.planning.request import Shrinkage
from compress_onnx.pipeline.recipe import GeneralTextData


def row(shrinkage: Shrinkage | None = None, **cosines: float) -> domains.Row:
    return domains.Row("low rank", shrinkage, cosines)


def test_the_worst_is_that_of_domains_that_nothing_was_learned_from():
    assert row(reference=0.95, descriptions=0.9, docstrings=0.85, verses=0.5).worst == 0.85


def test_the_unseen_domains_are_in_no_broader_text():
    for spec in (*domains.broader_text(64).values(), domains.GENERAL):
        if isinstance(spec, GeneralTextData):
            assert set(domains.UNSEEN).isdisjoint(spec.taken)
            assert set(domains.UNSEEN) <= set(spec.exclude)


def test_each_strength_is_tried_in_each_direction_once():
    tried = list(domains.shrinkages())
    assert tried[0] is None
    assert len(tried) == len(set(tried)) == 1 + 2 * len(domains.STRENGTHS)


def test_the_page_says_where_samples_are_from_and_has_a_line_a_row():
    rows = [
        row(reference=0.95, verses=0.7),
        row(Shrinkage(strength=0.3), reference=0.94, verses=0.8),
    ]
    page = list(domains.document(rows, {}, {"verses": [0] * 1024}, "make domains"))
    assert any("1,024 of verses" in line for line in page)
    assert page[-4:-2] == [
        "| low rank | none | 0 |  | 0.9500 | 0.7000 | 0.9500 |",
        "| low rank | broader | 0.3 |  | 0.9400 | 0.8000 | 0.9400 |",
    ]


def test_what_is_trained_says_on_what():
    trained = domains.Row("low rank", None, {"reference": 0.9}, "general text, 9 steps, 60 s")
    page = list(domains.document([trained], {}, {}, "make domains RECOVER=60"))
    assert page[-3] == "| low rank | none | 0 | general text, 9 steps, 60 s | 0.9000 | 0.9000 |"
    assert any("held out of it decide" in line for line in page)
