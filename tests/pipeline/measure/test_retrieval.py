"""Retrieval by topic: as scikit-learn scores it, blind to order, and worse for a damaged model."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score
from sklearn.metrics.pairwise import cosine_similarity

from compress_onnx.graph_passes.errors import DataError, RequestError
from compress_onnx.pipeline.measure.metrics import make_metric, retrieval
from compress_onnx.pipeline.recipe import RetrievalMetric
from compress_onnx.pipeline.runtime.samples import Batch


def measured(reference, candidate, labels, *, top_k=10, batches=1):
    metric = make_metric(RetrievalMetric(kind="retrieval", pooling="none", top_k=top_k))
    reference, candidate, labels = map(np.asarray, (reference, candidate, labels))
    for part in np.array_split(np.arange(len(labels)), batches):
        batch = Batch({}, part, None, labels[part])
        metric.update(batch, {"y": reference[part]}, {"y": candidate[part]})
    return metric.result()


def judged(vectors, labels, top_k=10):
    """NDCG by scikit-learn and recall by counting, of models without ties."""
    similar, labels = cosine_similarity(np.asarray(vectors, float)), np.asarray(labels)
    ndcg, recall = [], []
    for query in range(len(labels)):
        others = np.arange(len(labels)) != query
        relevant = labels[others] == labels[query]
        if relevant.any():
            scores = similar[query, others]
            ndcg.append(ndcg_score([relevant], [scores], k=top_k))
            nearest = np.argsort(-scores, kind="stable")[:top_k]
            recall.append(relevant[nearest].sum() / relevant.sum())
    return np.array(ndcg), np.array(recall)


def topical(rng, *, topics=6, each=8, width=16):
    """Float32 vectors around a centre for each topic, and the topics."""
    labels = np.repeat(np.arange(topics), each)
    centres = rng.normal(size=(topics, width))
    vectors = centres[labels] + 0.8 * rng.normal(size=(len(labels), width))
    return vectors.astype(np.float32), labels


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def test_three_by_hand():
    """The other a is nearer than b in the reference, and farther in the candidate."""
    labels = ["a", "a", "b"]
    reference = [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]
    candidate = [[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]]
    figures = measured(reference, candidate, labels, top_k=2)
    second = 1 / np.log2(3)
    assert (figures["ndcg_reference"], figures["recall_reference"]) == (1.0, 1.0)
    assert figures["ndcg"] == pytest.approx(second)
    assert figures["ndcg_drop"] == pytest.approx(1 - second)
    assert (figures["recall"], figures["recall_drop"]) == (1.0, 0.0)
    first_only = measured(reference, candidate, labels, top_k=1)
    assert (first_only["ndcg"], first_only["recall"], first_only["recall_drop"]) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("top_k", [1, 3, 10, 1000])
def test_figures_are_those_of_scikit_learn(rng, top_k):
    vectors, labels = topical(rng)
    candidate = vectors + rng.normal(size=vectors.shape).astype(np.float32)
    figures = measured(vectors, candidate, labels, top_k=top_k, batches=3)
    for score, ours, theirs in zip(
        retrieval.SCORES,
        judged(vectors, labels, top_k),
        judged(candidate, labels, top_k),
        strict=True,
    ):
        assert figures[f"{score}_reference"] == pytest.approx(ours.mean())
        assert figures[score] == pytest.approx(theirs.mean())
        assert figures[f"{score}_drop"] == pytest.approx((ours - theirs).mean(), abs=1e-12)


def test_ties_share_their_positions():
    """Of four documents at one place, one is relevant: at two of four positions it counts."""
    tied = np.ones((5, 2))
    figures = measured(tied, tied, ["a", "a", "b", "c", "d"], top_k=2)
    assert figures["recall"] == pytest.approx(2 / 4)
    assert figures["ndcg"] == pytest.approx((1 + 1 / np.log2(3)) / 4)
    expected = ndcg_score([[1, 0, 0, 0]], [[1.0, 1.0, 1.0, 1.0]], k=2)
    assert figures["ndcg"] == pytest.approx(expected)


def test_copies_of_a_sample_are_ties_whatever_rounding_says(rng):
    """Equal vectors of any length, of which one is relevant, in all orders."""
    one = rng.normal(size=384)
    vectors = np.stack([rng.normal(size=384), *(one * scale for scale in (1, 3, 7, 0.1))])
    labels = np.array([0, 0, 1, 2, 3])
    found = set()
    for _ in range(20):
        order = rng.permutation(5)
        # The query is the sample that is no copy; that of the relevant copy adds its own figure.
        found.add(
            round(measured(vectors[order], vectors[order], labels[order], top_k=1)["ndcg"], 9)
        )
    assert found == {0.125}  # (1/4 + 0)/2: a tie of four, and a copy whose nearest are the others


def test_a_damaged_model_drops(rng):
    vectors, labels = topical(rng)
    for damaged in (
        rng.permuted(vectors, axis=0),
        np.zeros_like(vectors),
        vectors * [1, *[0] * 15],
    ):
        figures = measured(vectors, damaged, labels)
        for score in retrieval.SCORES:
            assert figures[f"{score}_drop_low"] > 0.1
            assert figures[f"{score}_drop_low"] <= figures[f"{score}_drop"]
            assert figures[f"{score}_drop"] <= figures[f"{score}_drop_high"]
            assert figures[score] < figures[f"{score}_reference"]


def test_a_better_candidate_has_a_negative_drop(rng):
    vectors, labels = topical(rng)
    worse = vectors + rng.normal(size=vectors.shape)
    assert measured(worse, vectors, labels)["ndcg_drop_high"] < 0


def test_a_sample_alone_with_its_label_is_no_query_but_a_document(rng):
    vectors, labels = topical(rng)
    worse = vectors + rng.normal(size=vectors.shape)
    before, after = (np.append(v, v[:1] + 0.01, axis=0) for v in (vectors, worse))
    topics = np.append(labels, 99)
    figures = measured(before, after, topics)
    ndcg, _ = judged(before, topics)
    assert len(ndcg) == len(labels)
    assert figures["ndcg_reference"] == pytest.approx(ndcg.mean())
    # What is nearest to the first sample is irrelevant.
    assert figures["ndcg_reference"] < measured(vectors, worse, labels)["ndcg_reference"]


def test_nothing_to_find_is_refused(rng):
    with pytest.raises(DataError, match="no two of them do"):
        measured(rng.normal(size=(3, 4)), rng.normal(size=(3, 4)), ["a", "b", "c"])
    with pytest.raises(DataError, match="share a label"):
        make_metric(RetrievalMetric(kind="retrieval")).result()


def test_one_query_pair_gets_an_interval_of_its_own(rng):
    vectors = rng.normal(size=(2, 4))
    figures = measured(vectors, -vectors, ["a", "a"])
    assert figures["ndcg"] == figures["recall"] == 1.0  # nothing else is there to be found
    assert (figures["ndcg_drop_low"], figures["ndcg_drop_high"]) == (0.0, 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_value_that_is_not_finite_makes_every_figure_nan(rng, value):
    vectors, labels = topical(rng)
    damaged = vectors.copy()
    damaged[3, 2] = value
    figures = measured(vectors, damaged, labels)
    assert set(figures) == set(retrieval.FIGURES)
    assert all(math.isnan(figure) for figure in figures.values())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "needs labels"),
        (np.zeros(4), "one topic a sample"),
        (np.zeros((4, 2), int), "one topic a sample"),
        (np.array([None] * 4), "one topic a sample"),
    ],
)
def test_labels_that_are_no_topics_are_refused(labels, message):
    metric = make_metric(RetrievalMetric(kind="retrieval", pooling="none"))
    outputs = {"y": np.ones((4, 2))}
    with pytest.raises(DataError, match=message):
        metric.update(Batch({}, np.arange(4), None, labels), outputs, outputs)


def test_positions_are_pooled_where_the_mask_says(rng):
    """Damage of the padding is none; of a real position it is."""
    vectors, labels = topical(rng, width=4)
    hidden = np.stack([vectors, vectors, vectors], axis=1)  # [48, 3, 4]
    mask = np.array([[True, True, False]] * len(labels))
    batch = Batch({}, np.arange(len(labels)), mask, labels)
    found = {}
    for position in (1, 2):
        damaged = hidden.copy()
        damaged[:, position] = 9 * rng.normal(size=vectors.shape)
        metric = make_metric(RetrievalMetric(kind="retrieval"))
        metric.update(batch, {"y": hidden}, {"y": damaged})
        found[position] = metric.result()["ndcg_drop"]
    assert found[2] == 0.0
    assert found[1] > 0.1
    flat = make_metric(RetrievalMetric(kind="retrieval"))
    with pytest.raises(RequestError, match="3 axes"):
        flat.update(batch, {"y": vectors}, {"y": vectors})


def test_blocks_of_queries_change_nothing(rng, monkeypatch):
    vectors, labels = topical(rng)
    worse = vectors + rng.normal(size=vectors.shape)
    whole = measured(vectors, worse, labels)
    monkeypatch.setattr(retrieval, "_QUERIES_AT_A_TIME", 7)
    assert measured(vectors, worse, labels) == pytest.approx(whole)


cases = st.integers(0, 2**32 - 1).map(np.random.default_rng)
"""Sources of small cases; few distinct values make ties."""


def few_values(rng):
    count, width = rng.integers(4, 30), rng.integers(1, 5)
    reference, candidate = rng.integers(-2, 3, size=(2, count, width)).astype(np.float32)
    labels = rng.integers(0, count // 2, size=count)
    labels[:2] = 0
    return reference, candidate, labels


@given(cases)
def test_the_order_of_the_samples_changes_nothing(rng):
    reference, candidate, labels = few_values(rng)
    order = rng.permutation(len(labels))
    figures = measured(reference, candidate, labels, top_k=3)
    shuffled = measured(reference[order], candidate[order], labels[order], top_k=3, batches=2)
    assert shuffled == pytest.approx(figures, abs=1e-9)


@given(cases)
def test_identical_models_have_no_drop(rng):
    reference, _, labels = few_values(rng)
    figures = measured(reference, reference.copy(), labels, top_k=3)
    for score in retrieval.SCORES:
        assert figures[score] == figures[f"{score}_reference"]
        assert all(figures[f"{score}_drop{end}"] == 0.0 for end in ("", "_low", "_high"))
        assert 0.0 <= figures[score] <= 1.0 + 1e-12


@given(cases)
def test_names_of_topics_do_not_matter(rng):
    reference, candidate, labels = few_values(rng)
    texts = np.array([f"topic {9 * label}" for label in labels])
    assert measured(reference, candidate, texts) == measured(reference, candidate, labels)


def test_the_interval_covers_the_true_drop(rng):
    """Queries whose nearest document is the relevant one with chance 0.7, of the candidate."""
    covered = 0
    for _ in range(100):
        differences = (rng.random(80) > 0.7).astype(float)
        _, _, drop, low, high = retrieval._paired(np.ones(80), 1 - differences)
        assert low <= drop <= high
        covered += low <= 0.3 <= high
    assert covered >= 88
