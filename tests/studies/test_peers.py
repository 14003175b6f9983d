"""The published methods that we compare with do what their publications say."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from studies.peers import asvd4llm, flar_svd
from studies.peers.course import (
    CONTESTANTS,
    QUICK,
    CourseReport,
    Entry,
    Figures,
    Standing,
    run_course,
)
from studies.peers.fwsvd import fisher_weighted, information, row_information
from studies.peers.laboratory import Laboratory, budget, cost
from studies.peers.loss import cross_entropy, cross_entropy_adjoint
from studies.peers.page import render, verdicts
from studies.peers.svd_llm import whitened
from tiny_models import LENGTH, samples, saved, two_layers

from compress_onnx.graph_passes.allocation import Candidate
from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization import ActivationStats, MomentAccumulator
from compress_onnx.graph_passes.factorization.svd import SVD
from compress_onnx.pipeline.evidence.backward import SiteValues
from compress_onnx.pipeline.evidence.sensitivity import Trial
from compress_onnx.pipeline.files.original import open_original
from compress_onnx.pipeline.recipe import Recipe
from compress_onnx.pipeline.recipes.experiment import settings_of
from compress_onnx.pipeline.recipes.single import prepare_model
from compress_onnx.pipeline.results import Environment
from compress_onnx.pipeline.runtime.samples import Batch
from compress_onnx.pipeline.runtime.session import open_session, run

FEATURES = (24, 32, 16)
K, N = 12, 9
CANDIDATES = [Candidate("a", 32, 32), Candidate("b", 32, 64), Candidate("c", 64, 32)]


def stats_of(rows: np.ndarray) -> ActivationStats:
    accumulator = MomentAccumulator(rows.shape[1])
    accumulator.update(rows)
    return accumulator.result()


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def weight(rng):
    return rng.standard_normal((K, N))


@pytest.fixture(scope="module")
def rows(rng):
    """Correlated inputs whose mean is not zero."""
    return 2 + rng.standard_normal((200, K)) @ rng.standard_normal((K, K))


# --- SVD-LLM ---------------------------------------------------------------------------------


def test_whitened_error_is_the_tail_of_its_spectrum(weight, rows):
    found = whitened(weight, stats_of(rows))
    exact = np.linalg.norm(rows @ weight)
    for rank in (1, 4, N - 1):
        product = found.factorize(rank).product()
        measured = (np.linalg.norm(rows @ (weight - product)) / exact) ** 2
        assert measured == pytest.approx(found.tail[rank], rel=1e-6)


def test_whitening_agrees_with_the_published_form(weight, rows):
    half = np.linalg.cholesky(rows.T @ rows / len(rows))  # S Sᵀ
    u, s, v = np.linalg.svd(half.T @ weight)
    published = np.linalg.solve(half.T, u[:, :3] * s[:3]) @ v[:3]
    factorization = whitened(weight, stats_of(rows)).factorize(3)
    np.testing.assert_allclose(factorization.product(), published, atol=1e-8)
    assert factorization.bias is None


# --- FWSVD -----------------------------------------------------------------------------------


def test_uniform_information_is_plain_svd(weight):
    ours = fisher_weighted(weight, np.full(K, 0.3)).factorize(4)
    plain = SVD().decompose(weight, None).factorize(4)
    np.testing.assert_allclose(ours.product(), plain.product(), atol=1e-10)


def test_informative_rows_are_kept_more_exactly(weight):
    information_of_rows = np.ones(K)
    information_of_rows[2] = 100.0
    weighted = fisher_weighted(weight, information_of_rows).factorize(4).product()
    plain = SVD().decompose(weight, None).factorize(4).product()
    errors = [np.linalg.norm((weight - product)[2]) for product in (weighted, plain)]
    assert errors[0] < 0.5 * errors[1]


def test_information_of_a_row_is_the_squared_derivative_of_each_sample(rng):
    x = rng.standard_normal((4, 3, K)).astype(np.float32)
    g = rng.standard_normal((4, 3, N)).astype(np.float32)
    derivatives = np.einsum("ntk,ntj->nkj", x, g)
    found = row_information(SiteValues(x, g), samples=4)
    np.testing.assert_allclose(found, (derivatives**2).sum(axis=(0, 2)), rtol=1e-4)


def test_adjoint_of_the_cross_entropy_is_its_derivative(rng):
    logits = rng.standard_normal((5, 4))
    batch = Batch({}, np.arange(5), None, rng.integers(0, 4, 5))
    adjoint = cross_entropy_adjoint(logits, batch)
    step = 1e-5 * rng.standard_normal(logits.shape)
    change = cross_entropy(logits + step, batch) - cross_entropy(logits - step, batch)
    assert np.vdot(adjoint, 2 * step) == pytest.approx(change, rel=1e-3)


# --- ASVD4LLM --------------------------------------------------------------------------------


def truncations(harm):
    """Ranks 4, 8 and 12 of each candidate; ``harm`` times what is missing."""
    return [
        asvd4llm.Truncation(c.key, rank, harm[c.key] * (16 - rank))
        for c in CANDIDATES
        for rank in (4, 8, 12)
    ]


@pytest.mark.parametrize("share", [0.3, 0.4, 0.55, 0.7, 0.9])
def test_search_uses_the_budget_and_keeps_it(share):
    found = asvd4llm.search(CANDIDATES, truncations({"a": 1.0, "b": 1.1, "c": 1.2}), share)
    limit = budget(CANDIDATES, share)
    dearest_step = max(
        cost(CANDIDATES, {**found, key: rank}) - cost(CANDIDATES, found)
        for key in found
        for rank in (8, 12, None)
    )
    assert limit - dearest_step <= cost(CANDIDATES, found) <= limit


def test_search_truncates_what_harms_least():
    found = asvd4llm.search(CANDIDATES, truncations({"a": 100.0, "b": 1.0, "c": 1.0}), 0.5)
    assert found["a"] is None
    assert found["b"] is not None


def test_search_refuses_what_was_not_measured():
    with pytest.raises(RequestError, match="ASVD4LLM"):
        asvd4llm.search(CANDIDATES, truncations({"a": 1.0, "b": 1.0, "c": 1.0}), 0.01)


# --- FLAR-SVD --------------------------------------------------------------------------------


def falling(key, rank):
    """Feature errors that fall at a different pace for each weight."""
    return {"a": 0.7, "b": 0.75, "c": 0.6}[key] ** rank


@pytest.mark.parametrize("share", [0.4, 0.6, 0.8])
def test_feature_errors_are_equal_but_for_one_rank(share):
    found = flar_svd.search(CANDIDATES, falling, share, multiple=1)
    assert budget(CANDIDATES, share) * 0.95 <= cost(CANDIDATES, found) <= budget(CANDIDATES, share)
    factored = {key: rank for key, rank in found.items() if rank is not None}
    threshold = max(falling(key, rank) for key, rank in factored.items())
    assert len(factored) >= 2
    for key, rank in factored.items():
        assert rank == 1 or falling(key, rank - 1) > threshold


def test_a_weight_that_needs_all_its_ranks_stays_dense():
    hard = {"a": 1.0, "b": 0.3, "c": 0.3}
    found = flar_svd.search(CANDIDATES, lambda key, rank: hard[key] ** rank, 0.5, multiple=1)
    assert found["a"] is None


def test_search_is_by_halving():
    asked = []

    def error(key, rank):
        asked.append((key, rank))
        return falling(key, rank)

    flar_svd.search(CANDIDATES, error, 0.5, multiple=1)
    every = sum(c.dense // c.cost for c in CANDIDATES)
    assert len(set(asked)) < 0.7 * every


def test_search_refuses_a_budget_below_the_smallest_ranks():
    with pytest.raises(RequestError, match="more than 1%"):
        flar_svd.search(CANDIDATES, falling, 0.01, multiple=8)


# --- all together ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peers")
    path = saved(folder, two_layers(FEATURES)[0])
    data = samples(FEATURES[0], count=64)
    np.savez(folder / "data.npz", **data.inputs)
    npz = {"kind": "npz", "path": "data.npz"}
    changes = {"calibration": npz, "validation": npz, "benchmark": None}
    compression = {"rank_multiple": 2}
    recipe = Recipe.model_validate(
        {"name": "t", "source": {"model": path.name}, "compression": compression, **changes}
    )
    (folder / "reference").mkdir()
    settings = settings_of(recipe)
    experiment = prepare_model(recipe, folder / "reference", base_dir=folder, settings=settings)
    return Laboratory(experiment, probes=16)


@pytest.fixture(scope="module")
def compressors(laboratory):
    return {contestant.name: contestant.learn(laboratory) for contestant in CONTESTANTS}


@pytest.mark.parametrize("name", [contestant.name for contestant in CONTESTANTS])
def test_every_contestant_keeps_the_budget_and_runs(laboratory, compressors, name, tmp_path):
    reference = laboratory.experiment.reference
    feeds = {"x": laboratory.samples.inputs["x"]}
    before = run(open_session(reference), feeds)["y"]
    errors = []
    for share in (0.3, 0.6, 0.85):
        small = tmp_path / f"{share}.onnx"
        plan = compressors[name](share).write(small)
        assert plan.parameters_before == sum(c.dense for c in laboratory.candidates)
        assert 0.7 * share < plan.parameters_after / plan.parameters_before <= share
        after = run(open_session(small), feeds)["y"]
        errors.append(float(np.linalg.norm(after - before) / np.linalg.norm(before)))
    assert all(larger > smaller > 0 for larger, smaller in pairwise(errors))


def test_learning_leaves_the_model_as_it_was(laboratory, compressors):
    fresh = open_original(laboratory.experiment.reference)
    assert [node.name for node in laboratory.original.model.graph] == [
        node.name for node in fresh.model.graph
    ]
    assert len(compressors) == len(CONTESTANTS)


def test_information_without_labels_is_that_of_random_projections(laboratory):
    """At the last site the gradients are signs: T·N times the mean square, but for chance."""
    found = information(laboratory)["second.weight"]
    inputs = laboratory.learned.stats["second"]
    expected = LENGTH * FEATURES[2] * np.diag(inputs.second_moment)
    np.testing.assert_allclose(found, expected, rtol=0.25)


def test_last_feature_is_the_output_where_there_is_no_head(laboratory):
    assert flar_svd.last_feature(laboratory) == "y"


def test_padding_does_not_count_in_the_feature_error():
    before = np.ones((1, 3, 2))
    after = before.copy()
    after[0, 0] += 0.1
    after[0, 2] += 100.0
    mask = np.array([[True, True, False]])
    trial = Trial(Batch({}, np.arange(1), mask, None), {"f": before}, {"f": after})
    assert flar_svd.feature_error([trial], "f") == pytest.approx(0.02 / 4)


def standing(name, accuracy, relative_l2, ours=False):
    figures = Figures(metrics={"accuracy": accuracy}, relative_l2=relative_l2)
    entry = Entry(share=0.5, kept=0.5, seconds=1.0, figures=figures)
    return Standing(
        name=name, ours=ours, source="s", activations=True, learn_s=1.0, entries=(entry,)
    )


@pytest.mark.parametrize(
    ("accuracy", "relative_l2", "outcomes"),
    [(0.98, 0.1, ["ahead", "ahead"]), (0.97, 0.2, ["tie", "tie"]), (0.96, 0.3, ["behind"] * 2)],
)
def test_verdicts_say_who_is_ahead_and_of_whom(accuracy, relative_l2, outcomes):
    report = CourseReport(
        name="n",
        kind="accuracy",
        layers=1,
        parameters=1,
        multiple=8,
        calibration="c",
        validation="v",
        labelled=True,
        probes=1,
        seed=0,
        steps=1,
        calibrate_s=1.0,
        standings=(
            standing("svd", 0.97, 0.5, ours=True),
            standing("FWSVD", 0.97, 0.2),
            standing("asvd", 0.99, 0.0, ours=True),  # our own is no peer of ours
            standing("auto", accuracy, relative_l2, ours=True),
        ),
    )
    found = verdicts(report)
    assert [verdict.outcome for verdict in found] == outcomes
    assert [verdict.peers for verdict in found] == [("svd", "FWSVD"), ("FWSVD",)]
    assert not report.recovered


@pytest.mark.slow
def test_the_study_runs_as_a_whole(tmp_path):
    pytest.importorskip("transformers")
    report = run_course(QUICK)
    assert [standing.name for standing in report.standings] == [c.name for c in CONTESTANTS]
    for standing in report.standings:
        (entry,) = standing.entries
        assert 0.4 < entry.kept <= 0.5
        assert entry.figures.metrics["accuracy"] > 0.5
        assert 0 < entry.figures.relative_l2 < 1
        assert entry.recovered is not None
    assert {verdict.recovered for verdict in verdicts(report)} == {False, True}
    machine = Environment(python="3", platform="p", processor="c", cores=1, packages={})
    text = render([report], machine, command="make peers", cached=False)
    for standing in report.standings:
        rows = re.findall(rf"^\| `?{re.escape(standing.name)}`?(?: \(ours\))? \|.+\|$", text, re.M)
        assert len(rows) == 5
    assert "cross-entropy of the labels" in text
