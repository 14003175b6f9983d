"""Task metrics: exact on identical models, and each figure sees the damage that it is for."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr

from compress_onnx.graph_passes.errors import DataError, ModelFileError, RequestError
from compress_onnx.pipeline.measure.metrics import embedding, make_metric
from compress_onnx.pipeline.measure.metrics.accuracy import Accuracy, paired_interval
from compress_onnx.pipeline.measure.metrics.embedding import EmbeddingFidelity
from compress_onnx.pipeline.measure.metrics.mask_filling import MaskFilling
from compress_onnx.pipeline.measure.metrics.pooled import pool
from compress_onnx.pipeline.measure.metrics.retrieval import Retrieval
from compress_onnx.pipeline.recipe import (
    AccuracyMetric,
    EmbeddingMetric,
    MaskFillingMetric,
    MetricSpec,
    TranslationMetric,
)
from compress_onnx.pipeline.runtime.samples import Batch

EMBEDDING = EmbeddingMetric(kind="embedding", pooling="none", neighbours=3)
ACCURACY = AccuracyMetric(kind="accuracy")


def batch(count: int, *, mask=None, labels=None) -> Batch:
    return Batch({}, np.arange(count), mask, None if labels is None else np.asarray(labels))


def measured(spec: MetricSpec, reference, candidate, *, mask=None, labels=None):
    metric = make_metric(spec)
    metric.update(
        batch(len(reference), mask=mask, labels=labels),
        {"y": np.asarray(reference)},
        {"y": np.asarray(candidate)},
    )
    return metric.result()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


@pytest.fixture
def vectors(rng) -> np.ndarray:
    return rng.normal(size=(40, 16)).astype(np.float32)


def test_every_metric_of_one_graph_has_an_accumulator():
    union, _ = get_args(MetricSpec)
    for spec_class in set(get_args(union)) - {TranslationMetric}:
        (kind,) = get_args(spec_class.model_fields["kind"].annotation)
        metric = make_metric(spec_class(kind=kind))
        assert isinstance(metric, EmbeddingFidelity | Accuracy | MaskFilling | Retrieval)


# Embeddings


def test_identical_embeddings_are_exactly_identical(vectors):
    assert measured(EMBEDDING, vectors, vectors.copy()) == {
        "cosine": 1.0,
        "cosine_p5": 1.0,
        "neighbour_overlap": 1.0,
        "spearman": 1.0,
        "cosine_low": 1.0,
        "cosine_high": 1.0,
    }


def test_the_interval_of_the_cosine_covers_the_true_mean(rng):
    """Samples whose cosine to the original is 0.6 or 0.8, half of them each: the mean is 0.7."""
    covered = 0
    for _ in range(200):
        cosines = rng.choice([0.6, 0.8], size=60)
        reference = np.zeros((60, 3), np.float32)
        reference[:, 0] = 1
        candidate = np.stack([cosines, np.sqrt(1 - cosines**2), 0 * cosines], axis=1)
        figures = measured(EMBEDDING, reference, candidate.astype(np.float32))
        covered += figures["cosine_low"] <= 0.7 <= figures["cosine_high"]
    assert 0.9 * 200 <= covered < 200


def test_embedding_figures_agree_with_a_direct_computation(vectors, rng):
    candidate = vectors + rng.normal(size=vectors.shape)
    result = measured(EMBEDDING, vectors, candidate)
    before, after = (1 - cdist(v, v, "cosine") for v in (vectors, candidate))
    cosines = 1 - np.diag(cdist(vectors, candidate, "cosine"))
    pairs = np.triu_indices(len(vectors), 1)
    shared = []
    for i in range(len(vectors)):
        ours, theirs = ([j for j in np.argsort(-s[i]) if j != i][:3] for s in (before, after))
        shared.append(len(set(ours) & set(theirs)) / 3)
    assert result["cosine"] == pytest.approx(cosines.mean())
    assert result["cosine_p5"] == pytest.approx(np.percentile(cosines, 5))
    assert result["neighbour_overlap"] == pytest.approx(np.mean(shared))
    assert result["spearman"] == pytest.approx(spearmanr(before[pairs], after[pairs]).statistic)


@given(cuts=st.lists(st.integers(0, 40), max_size=4))
def test_streaming_equals_one_shot(cuts):
    rng = np.random.default_rng(2)
    reference = rng.normal(size=(40, 8))
    candidate = reference + 0.3 * rng.normal(size=reference.shape)
    metric = make_metric(EMBEDDING)
    for part in np.split(np.arange(40), sorted(cuts)):
        metric.update(batch(len(part)), {"y": reference[part]}, {"y": candidate[part]})
    assert metric.result() == pytest.approx(measured(EMBEDDING, reference, candidate))


def test_neighbours_do_not_depend_on_the_block_size(vectors, rng, monkeypatch):
    candidate = vectors + rng.normal(size=vectors.shape)
    whole = measured(EMBEDDING, vectors, candidate)
    monkeypatch.setattr(embedding, "_ROWS_AT_A_TIME", 7)
    assert measured(EMBEDDING, vectors, candidate) == pytest.approx(whole)


def test_many_samples_are_thinned_for_the_pair_similarities(vectors, rng, monkeypatch):
    candidate = vectors + rng.normal(size=vectors.shape)
    monkeypatch.setattr(embedding, "_SPEARMAN_SAMPLES", 20)
    chosen = np.linspace(0, 39, 20).astype(int)
    expected = measured(EMBEDDING, vectors[chosen], candidate[chosen])["spearman"]
    assert measured(EMBEDDING, vectors, candidate)["spearman"] == pytest.approx(expected)


def test_noise_lowers_every_figure(vectors, rng):
    result = measured(EMBEDDING, vectors, vectors + 2 * rng.normal(size=vectors.shape))
    assert all(value < 0.8 for value in result.values())


def test_swapped_samples_lower_every_figure(vectors):
    assert all(value < 0.6 for value in measured(EMBEDDING, vectors, vectors[::-1]).values())


def test_permuted_dimensions_lower_the_cosine_only(vectors):
    result = measured(EMBEDDING, vectors, np.roll(vectors, 1, axis=1))
    assert result["cosine"] < 0.3
    assert (result["neighbour_overlap"], result["spearman"]) == pytest.approx((1.0, 1.0))


def test_one_damaged_sample_shows_in_the_tail(vectors):
    candidate = vectors.copy()
    candidate[:4] *= -1
    assert measured(EMBEDDING, vectors, candidate)["cosine_p5"] == pytest.approx(-1.0)


def test_collapsed_embeddings_keep_no_order(vectors):
    unit = np.zeros_like(vectors)
    unit[:, 0] = 1
    result = measured(EMBEDDING, vectors, unit)
    assert result["spearman"] == 0.0
    assert result["neighbour_overlap"] < 0.3
    assert measured(EMBEDDING, vectors, np.zeros_like(vectors))["cosine"] == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_value_that_is_not_finite_makes_every_figure_nan(vectors, value):
    candidate = vectors.copy()
    candidate[7, 3] = value
    assert all(math.isnan(v) for v in measured(EMBEDDING, vectors, candidate).values())


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pooling_ignores_garbage_in_the_padding(rng, pooling):
    hidden = rng.normal(size=(3, 5, 4)).astype(np.float32)
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
    garbage = np.where(mask[..., None], hidden, np.float32(math.nan))
    expected = [
        row[real].mean(axis=0) if pooling == "mean" else row[real][0]
        for row, real in zip(hidden, mask, strict=True)
    ]
    np.testing.assert_allclose(pool(garbage, mask, pooling), expected, rtol=1e-6)


def test_pooling_without_a_mask_uses_every_position(rng):
    hidden = rng.normal(size=(3, 5, 4))
    np.testing.assert_allclose(pool(hidden, None, "mean"), hidden.mean(axis=1))
    np.testing.assert_array_equal(pool(hidden, None, "cls"), hidden[:, 0])


def test_pooling_refuses_a_mask_of_another_shape(rng):
    with pytest.raises(RequestError, match="padding mask"):
        pool(rng.normal(size=(3, 5, 4)), np.ones((3, 6), bool), "mean")


def test_too_few_samples_would_make_everybody_a_neighbour(vectors):
    with pytest.raises(DataError, match="at least 5 samples"):
        measured(EMBEDDING, vectors[:4], vectors[:4])


def test_the_output_is_the_only_one_of_the_right_rank_or_the_named_one(vectors):
    outputs = {"scalar": np.ones(40), "good": vectors}
    damaged = outputs | {"good": -vectors}
    metric = make_metric(EMBEDDING)
    metric.update(batch(40), outputs, damaged)
    assert metric.result()["cosine"] == pytest.approx(-1.0)
    named = make_metric(EMBEDDING.model_copy(update={"output": "nothing"}))
    with pytest.raises(RequestError, match="use one of scalar, good"):
        named.update(batch(40), outputs, outputs)


def test_an_output_of_the_wrong_rank_is_refused(vectors):
    with pytest.raises(RequestError, match="3 axes"):
        measured(EmbeddingMetric(kind="embedding"), vectors, vectors)


@pytest.mark.parametrize("spec", [EMBEDDING, ACCURACY])
def test_models_of_different_shapes_are_refused(spec, vectors):
    with pytest.raises(ModelFileError, match="candidate"):
        measured(spec, vectors, vectors[:, :5], labels=np.zeros(40, int))


# Accuracy


@pytest.fixture
def classified(rng) -> tuple[np.ndarray, np.ndarray]:
    """Logits ``[200, 5]`` that are right in about nine of ten cases, and the labels."""
    labels = rng.integers(0, 5, 200)
    logits = rng.normal(size=(200, 5)).astype(np.float32)
    logits[np.arange(200), labels] += 3.5
    return logits, labels


def test_identical_classifiers_do_not_differ(classified):
    logits, labels = classified
    result = measured(ACCURACY, logits, logits.copy(), labels=labels)
    assert result["accuracy"] == result["accuracy_reference"] > 0.8
    assert result["accuracy_drop"] == 0.0
    assert (result["agreement"], result["mcnemar_p"]) == (1.0, 1.0)
    assert -0.02 < result["accuracy_drop_low"] < 0 < result["accuracy_drop_high"] < 0.02


def test_accuracy_figures_by_hand():
    truth = [0, 1, 2, 0]
    reference = np.eye(3)[[0, 1, 2, 1]]
    candidate = np.eye(3)[[0, 2, 0, 0]]
    result = measured(ACCURACY, reference, candidate, labels=truth)
    assert result["accuracy_reference"] == 0.75
    assert result["accuracy"] == 0.5
    assert result["accuracy_drop"] == 0.25
    assert result["agreement"] == 0.25
    assert result["mcnemar_p"] == 1.0  # 2 against 1: every outcome is at least as extreme


def test_accuracy_streams(classified):
    logits, labels = classified
    candidate = logits + np.random.default_rng(3).normal(size=logits.shape)
    metric = make_metric(ACCURACY)
    for part in np.array_split(np.arange(200), 7):
        metric.update(
            batch(len(part), labels=labels[part]), {"y": logits[part]}, {"y": candidate[part]}
        )
    assert metric.result() == measured(ACCURACY, logits, candidate, labels=labels)


def test_swapped_classes_are_a_significant_drop(classified):
    logits, labels = classified
    result = measured(ACCURACY, logits, logits[:, [1, 0, 2, 3, 4]], labels=labels)
    assert result["accuracy_drop"] > 0.2
    assert result["accuracy_drop_low"] > 0.1
    assert result["agreement"] < 0.8
    assert result["mcnemar_p"] < 1e-6


@pytest.mark.parametrize("value", [math.nan, 0.0], ids=["nan", "constant"])
def test_logits_that_say_nothing_do_not_count_as_right(value):
    labels = np.array([1, 2, 3, 4])
    logits = np.eye(5)[labels]
    result = measured(ACCURACY, logits, np.full((4, 5), value), labels=labels)
    assert (result["accuracy"], result["agreement"]) == (0.0, 0.0)


def test_nan_on_both_sides_is_wrong_on_both_sides():
    logits = np.full((4, 5), math.nan)
    result = measured(ACCURACY, logits, logits, labels=[0, 1, 2, 3])
    assert result["accuracy_reference"] == result["accuracy"] == result["agreement"] == 0.0


def test_top_k_counts_a_label_among_the_k_best():
    logits = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]])
    for k, accuracy in ((1, 0.0), (2, 0.5), (3, 1.0)):
        spec = AccuracyMetric(kind="accuracy", top_k=k)
        assert measured(spec, logits, logits, labels=[2, 2])["accuracy"] == accuracy


def test_top_k_of_all_classes_means_nothing():
    with pytest.raises(RequestError, match="always right"):
        measured(AccuracyMetric(kind="accuracy", top_k=2), np.eye(2), np.eye(2), labels=[0, 1])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "needs labels"),
        ([0.0, 1.0], "one class number"),
        ([[0], [1]], "one class number"),
        ([-1, 0], "classes 0 to 2"),
        ([0, 3], "classes 0 to 2"),
    ],
)
def test_labels_that_make_no_sense_are_refused(labels, message):
    with pytest.raises(DataError, match=message):
        measured(ACCURACY, np.eye(3)[:2], np.eye(3)[:2], labels=labels)


def test_accuracy_of_nothing_is_a_failure():
    with pytest.raises(DataError):
        make_metric(ACCURACY).result()


@given(
    st.integers(1, 500).flatmap(
        lambda n: st.tuples(st.integers(0, n), st.integers(0, n), st.just(n))
    )
)
def test_the_interval_holds_the_estimate_and_mirrors(counts):
    b, c, n = counts
    if b + c > n:
        b, c = n - b, n - c
    low, high = paired_interval(b, c, n)
    assert -1 <= low <= (b - c) / n <= high <= 1
    assert paired_interval(c, b, n) == pytest.approx((-high, -low))


@pytest.mark.parametrize(("p", "q", "n"), [(0.02, 0.01, 500), (0.1, 0.05, 100), (0.0, 0.03, 360)])
def test_the_interval_covers_the_truth_as_often_as_it_says(p, q, n):
    draws = np.random.default_rng(4).multinomial(n, [p, q, 1 - p - q], size=2000)
    intervals = np.array([paired_interval(int(b), int(c), n) for b, c, _ in draws])
    covered = ((intervals[:, 0] <= p - q) & (p - q <= intervals[:, 1])).mean()
    assert covered >= 0.93


# Mask filling

FILLING = MaskFillingMetric(kind="mask-filling", top_k=2)


@pytest.fixture
def filled(rng) -> tuple[np.ndarray, np.ndarray]:
    """Logits [100, 6, 9] that mostly know the labels [100, 6], of which one a row counts."""
    words = rng.integers(9, size=(100, 6))
    logits = np.eye(9)[words] * 3 + rng.normal(size=(100, 6, 9))
    masked = np.arange(6) == rng.integers(6, size=100)[:, None]
    return logits, np.where(masked, words, -100)


def test_mask_filling_is_the_accuracy_at_the_masked_positions(filled, rng):
    logits, labels = filled
    candidate = logits + rng.normal(size=logits.shape)
    masked = labels >= 0
    top_2 = AccuracyMetric(kind="accuracy", top_k=2)
    expected = measured(top_2, logits[masked], candidate[masked], labels=labels[masked])
    assert measured(FILLING, logits, candidate, labels=labels) == expected
    assert 0.9 < expected["accuracy_reference"] < 1


def test_what_happens_elsewhere_does_not_count(filled):
    logits, labels = filled
    elsewhere = np.where((labels >= 0)[..., None], logits, -logits)
    result = measured(FILLING, logits, elsewhere, labels=labels)
    assert result["accuracy_drop"] == 0.0
    assert result["agreement"] == 1.0


def test_a_model_that_fills_in_by_the_wrong_position_drops(filled):
    logits, labels = filled
    result = measured(FILLING, logits, np.roll(logits, 1, axis=1), labels=labels)
    assert result["accuracy_drop_low"] > 0.4


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "found none: use data of the kind masked"),
        ([0, 1], r"label for each position \[2, 3\], found \[2\]"),
        ([[0, -100], [-100, 1]], r"found \[2, 2\]"),
        ([[0.0, -100, -100]] * 2, "one class number"),
        ([[9, -100, -100]] * 2, "classes 0 to 3"),
        ([[-1, 0, 0]] * 2, "classes 0 to 3"),
    ],
)
def test_labels_that_mark_no_words_are_refused(labels, message):
    logits = np.zeros((2, 3, 4))
    with pytest.raises(DataError, match=message):
        measured(FILLING, logits, logits, labels=labels)


def test_nothing_masked_is_a_failure():
    metric = make_metric(FILLING)
    metric.update(batch(2, labels=[[-100] * 3] * 2), *[{"y": np.zeros((2, 3, 4))}] * 2)
    with pytest.raises(DataError, match="there were none"):
        metric.result()
