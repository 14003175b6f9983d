"""Recovery: gradients, never worse, budgets, kills, determinism, and what it refuses."""

from __future__ import annotations

import ffn_forms
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models as small
from ffn_forms import SPELLINGS
from pydantic import ValidationError

from compress_onnx.graph_passes.errors import DataError, RequestError
from compress_onnx.graph_passes.factorization.balance import balanced
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.rewriting.trainable import (
    array_of,
    balanced_factors,
    factors,
    network_weights,
    vectors,
)
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.files.cache import ArrayCache
from compress_onnx.pipeline.files.model_file import load_model, save_model
from compress_onnx.pipeline.recipe import RecoverySpec
from compress_onnx.pipeline.recover.recover import Lessons, recover
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run

ONE_THREAD = SessionSpec(threads=1)


HALF = CompressionSpec(method=MethodSpec(name="svd"), params=0.4, rank_multiple=1)


def steps(count, **settings):
    return RecoverySpec(budget=None, steps=count, **settings)


def compressed(path, request=HALF):
    """The model in ``path`` with its sites factored, in memory."""
    return learn(path).compress(request).model


def rows(count=80, seed=1):
    x = np.random.default_rng(seed).normal(size=(count, small.FEATURES)).astype(np.float32)
    return Samples({"x": x})


def arrays(model):
    return {name: array_of(value) for name, value in model.graph.initializers.items()}


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


@pytest.fixture
def reference(tmp_path):
    return small.save(small.perceptron(), tmp_path / "model.onnx")


@pytest.fixture
def train(reference):
    """Recover a fresh candidate; returns it with the report."""

    def call(settings, samples=None, held_out=None, **arguments):
        candidate = arguments.pop("candidate", None) or compressed(reference)
        arguments = {
            "data_folder": reference.parent,
            "spec": ONE_THREAD,
            "batch_size": 8,
        } | arguments
        lessons = Lessons(samples or rows(), held_out)
        return candidate, recover(reference, candidate, lessons, settings, **arguments)

    return call


def relative_error(reference, model, path, samples):
    save_model(model, path)
    expected, actual = (
        run(open_session(file, ONE_THREAD), samples.inputs)["y"] for file in (reference, path)
    )
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


# What is trained


def test_balanced_factors_have_the_same_product_and_equal_singular_values():
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(7, 3)) * 100, rng.normal(size=(3, 9))
    one, other = balanced(left, right)
    np.testing.assert_allclose(one @ other, left @ right, atol=1e-10 * np.abs(left @ right).max())
    values = [np.linalg.svd(factor, compute_uv=False) for factor in (one, other)]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-9)


def test_factors_and_vectors_are_found_and_balanced(reference):
    model = compressed(reference)
    found = factors(model)
    assert len(found) == 6
    assert {value.name for value in vectors(model)} == {"b1", "b2", "b3"}
    before = {value: array_of(value) for value in found}
    after = balanced_factors(model)
    assert all(np.array_equal(array_of(value), before[value]) for value in found)
    norms = [float(np.linalg.norm(array)) for array in after.values()]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert np.linalg.norm(before[found[0]]) != pytest.approx(
        np.linalg.norm(before[found[1]]), rel=0.05
    )


def test_a_model_without_factors_is_refused(reference, train):
    with pytest.raises(RequestError, match="no float32 weight"):
        train(steps(1), candidate=load_model(reference))


# Training


def test_recovery_brings_outputs_closer_on_data_that_it_never_saw(reference, train, tmp_path):
    unseen = rows(seed=9)
    start = relative_error(reference, compressed(reference), tmp_path / "start.onnx", unseen)
    model, report = train(steps(150, learning_rate=0.01))
    end = relative_error(reference, model, tmp_path / "end.onnx", unseen)
    assert report.improved
    assert report.end_loss < 0.6 * report.start_loss
    assert end < 0.85 * start
    assert report.steps == 150
    assert (report.batches, report.held_out_batches) == (9, 1)


def test_only_trained_weights_change(reference, train):
    before = compressed(reference)
    trained = {value.name for value in factors(before)}
    model, _ = train(steps(20, train="factors", learning_rate=0.01))
    assert arrays(model).keys() == arrays(before).keys()
    for name, array in arrays(before).items():
        assert np.array_equal(array, arrays(model)[name]) == (name not in trained), name
        assert model.graph.initializers[name].dtype == before.graph.initializers[name].dtype
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)


@pytest.mark.parametrize("rate", [10.0, 1e30])
def test_a_rate_that_diverges_leaves_the_model_as_it_was(reference, train, rate):
    model, report = train(steps(30, learning_rate=rate))
    assert not report.improved
    assert report.end_loss == report.start_loss
    assert_equal(arrays(model), arrays(compressed(reference)))


def test_not_a_number_ends_training_and_says_so(train):
    _, report = train(steps(30, learning_rate=1e30))
    assert "finite" in report.stopped
    assert report.steps < 30


def test_a_rate_that_is_too_high_is_halved_from_the_best_weights(train):
    _, report = train(steps(250, learning_rate=1.0))
    assert report.improved


def test_training_without_improvement_stops_early(train):
    _, report = train(steps(1000, learning_rate=3.0, patience=2))
    assert report.steps < 100
    assert report.stopped == "2 checks without an improvement"


def test_steps_alone_make_it_deterministic_and_the_seed_matters(train):
    first, again, other = (
        arrays(train(steps(25, learning_rate=0.01), seed=seed)[0]) for seed in (1, 1, 2)
    )
    assert_equal(first, again)
    assert any(not np.array_equal(array, other[name]) for name, array in first.items())


def test_padding_does_not_matter(tmp_path):
    """What padding positions compute is neither compared nor trained on."""
    models = []
    inputs = small.sentences(count=60)
    for garbage in (0.0, 50.0):
        path = small.save(small.encoder(garbage), tmp_path / f"{garbage}.onnx")
        model = compressed(path)
        del model.graph.outputs[1]  # the pooled output sees padding by construction
        original = load_model(path)
        del original.graph.outputs[1]
        save_model(original, path)
        report = recover(
            path,
            model,
            Lessons(Samples(inputs, "attention_mask")),
            steps(10, learning_rate=0.01),
            data_folder=tmp_path,
            spec=ONE_THREAD,
            batch_size=6,
        )
        assert report.improved
        models.append([array_of(value) for value in factors(model)])
    for clean, dirty in zip(*models, strict=True):
        np.testing.assert_allclose(clean, dirty, rtol=1e-3, atol=1e-5)


# Budgets and kills


class Clock:
    """Each look at it takes ``tick`` seconds; at ``kill_at`` the process is killed."""

    def __init__(self, tick=1.0, kill_at=None):
        self.now = 0.0
        self._tick = tick
        self._kill_at = kill_at

    def __call__(self):
        self.now += self._tick
        if self._kill_at is not None and self.now >= self._kill_at:
            raise KeyboardInterrupt
        return self.now


def test_a_budget_in_seconds_ends_training(train):
    _, report = train(RecoverySpec(budget=60.0, learning_rate=0.01), clock=Clock())
    assert report.stopped == "the budget is used up"
    assert 0 < report.steps < 60
    assert 60 <= report.seconds < 70


def test_whichever_budget_ends_first(train):
    _, report = train(RecoverySpec(budget=1e6, steps=7), clock=Clock())
    assert report.steps == 7


def test_progress_reaches_the_end(train):
    seen = []
    train(steps(5), progress=seen.append)
    assert seen == [200, 400, 600, 800, 1000]


@pytest.mark.parametrize("rate", [0.01, None])
def test_a_killed_recovery_goes_on_and_ends_like_one_that_was_not(rate, train, tmp_path):
    settings = steps(60, learning_rate=rate)
    whole, expected = train(settings)
    cache = ArrayCache(tmp_path / "checkpoints")
    with pytest.raises(KeyboardInterrupt):
        train(settings, checkpoints=cache, clock=Clock(tick=40.0, kill_at=300.0))
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    seen = []
    resumed, report = train(settings, checkpoints=cache, progress=seen.append)
    assert len(seen) == 40  # it went on after step 20
    assert report.steps == 60
    assert report.end_loss == expected.end_loss
    assert report.learning_rate == expected.learning_rate
    assert all(
        np.array_equal(array, arrays(whole)[name]) for name, array in arrays(resumed).items()
    )


def test_another_recovery_does_not_take_the_checkpoint(train, tmp_path):
    cache = ArrayCache(tmp_path / "checkpoints")
    train(steps(10), checkpoints=cache)
    for changed in ({"settings": steps(11)}, {"samples": rows(seed=5)}, {"seed": 3}):
        seen = []
        train(
            changed.pop("settings", steps(10)), checkpoints=cache, progress=seen.append, **changed
        )
        assert len(seen) >= 10


def test_a_finished_recovery_costs_nothing_again(train, tmp_path):
    cache = ArrayCache(tmp_path / "checkpoints")
    first, report = train(steps(20, learning_rate=0.01), checkpoints=cache)
    seen = []
    second, again = train(steps(20, learning_rate=0.01), checkpoints=cache, progress=seen.append)
    assert not seen
    assert again.end_loss == report.end_loss
    assert_equal(arrays(first), arrays(second))


# What decides


def test_samples_of_their_own_decide(reference, train, tmp_path):
    """Training goes on to help the rows that it sees; what is kept helps the others."""
    far_rows = Samples({"x": 300 * rows(160).inputs["x"]})
    others = rows(64, seed=5)
    settings = steps(300, learning_rate=0.02)
    start = relative_error(reference, compressed(reference), tmp_path / "start.onnx", others)
    far, alone = train(settings, far_rows)
    near, report = train(settings, far_rows, held_out=others)
    assert (alone.batches, alone.held_out_batches) == (18, 2)
    assert (report.batches, report.held_out_batches) == (20, 8)
    assert alone.improved
    worse, kept = (
        relative_error(reference, model, tmp_path / "end.onnx", others) for model in (far, near)
    )
    assert worse > 1.1 * start
    assert kept <= start
    # Their loss is told: whatever is trained on, the start is the same.
    _, again = train(steps(1), rows(seed=2), held_out=others)
    assert again.start_loss == report.start_loss != alone.start_loss


def test_a_batch_is_enough_where_others_decide(train):
    with pytest.raises(DataError, match="more samples"):
        train(steps(1), samples=rows(1))
    _, report = train(steps(1), samples=rows(1), held_out=rows(3))
    assert (report.batches, report.held_out_batches) == (1, 1)


def test_other_samples_that_decide_are_another_recovery(train, tmp_path):
    cache, seen = ArrayCache(tmp_path / "checkpoints"), []
    train(steps(10), held_out=rows(9), checkpoints=cache)
    train(steps(10), held_out=rows(9, seed=6), checkpoints=cache, progress=seen.append)
    assert len(seen) == 10


# Requests


def test_too_few_samples(train):
    with pytest.raises(DataError, match="more samples"):
        train(steps(1), samples=rows(1))


def test_a_recovery_has_to_end():
    with pytest.raises(ValidationError, match="recovery has to end"):
        RecoverySpec(budget=None)


# Labels


def cross_entropy(model, path, samples):
    save_model(model, path)
    logits = run(open_session(path, ONE_THREAD), samples.inputs)["y"].astype(np.float64)
    logarithms = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -logarithms[np.arange(len(logits)), samples.labels].mean()


def labelled_rows(reference):
    """Rows whose labels are not what the reference says: only training with labels learns them."""
    plain = rows(160)
    logits = run(open_session(reference, ONE_THREAD), plain.inputs)["y"]
    return Samples(plain.inputs, labels=np.argmin(logits, axis=1))


def test_labels_pull_away_from_the_original(train, reference, tmp_path):
    samples = labelled_rows(reference)
    entropies = []
    for importance in (0.0, 10.0):
        settings = steps(60, mixing=0.0, labels=importance, learning_rate=0.02)
        model, report = train(settings, samples)
        assert report.improved
        entropies.append(cross_entropy(model, tmp_path / "out.onnx", samples))
    assert entropies[1] < 0.5 * entropies[0]


def test_labels_that_the_original_gets_wrong_are_no_reason_for_larger_steps(train, reference):
    close = HALF.model_copy(update={"params": 0.95, "rank_multiple": 1, "allow_larger": True})
    reports = [
        train(
            steps(1, mixing=0.0, pooled=0.0, labels=importance),
            labelled_rows(reference),
            candidate=compressed(reference, close),
        )[1]
        for importance in (0.0, 1.0)
    ]
    # Every label is wrong: as a distance, their entropy would give the largest rate there is.
    assert reports[1].start_loss > 1
    assert reports[1].learning_rate == pytest.approx(reports[0].learning_rate, rel=0.5)
    assert reports[1].learning_rate < 0.004


def test_labels_are_refused_where_there_are_none(train):
    with pytest.raises(DataError, match="needs labels in the calibration data"):
        train(steps(2, labels=1.0))
    plain = rows(20)
    tokens = Samples(plain.inputs, labels=np.zeros((20, 3), np.int64))
    with pytest.raises(DataError, match=r"needs an output \[samples, positions, tokens\]"):
        train(steps(2, labels=1.0), tokens)


# Networks with fewer neurons


CHAIN = CompressionSpec(
    method=MethodSpec(name="svd"), ffns="neurons", params=0.4, rank_multiple=1, sequential=False
)


@pytest.fixture
def chain(reference, tmp_path):
    """Fewer neurons and low-rank factors in one model, from its file."""
    learned = learn(reference, rows(160))
    plan = learned.compress(CHAIN).write(tmp_path / "chain.onnx")
    assert [site.decision for site in plan.sites] == ["neurons", "neurons", "factor"]
    return load_model(tmp_path / "chain.onnx")


def test_neurons_and_factors_are_trained_in_one_model(reference, train, chain, tmp_path):
    before, unseen = arrays(chain), rows(seed=9)
    start = relative_error(reference, chain, tmp_path / "start.onnx", unseen)
    model, report = train(steps(150, train="factors", learning_rate=0.01), candidate=chain)
    after = arrays(model)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    kept = {name for name in before if ".lowrank.bias" not in name and name != "b3"}
    assert changed == kept  # both layers of the network with their biases, and the factors
    assert len(changed) == 6
    assert report.improved
    assert relative_error(reference, model, tmp_path / "end.onnx", unseen) < 0.9 * start


@pytest.mark.parametrize("name", SPELLINGS)
def test_networks_in_every_spelling_are_trained(name, tmp_path):
    """All that a network lost neurons in: weights, biases, slopes."""
    path = tmp_path / "model.onnx"
    onnx.save(ffn_forms.build(name), path)
    samples = Samples(ffn_forms.feeds(name))
    request = CompressionSpec(method=MethodSpec(name="neurons"), params=0.3, rank_multiple=1)
    model = learn(path, samples).compress(request).model
    before = arrays(model)
    trained = {value.name for value in network_weights(model)}
    assert len(trained) >= 2
    report = recover(
        path,
        model,
        Lessons(samples),
        steps(20, train="factors", mixing=0.0, learning_rate=0.003),
        data_folder=tmp_path,
        spec=ONE_THREAD,
    )
    assert report.parameters == sum(before[name].size for name in trained)
    after = arrays(model)
    for key, array in before.items():
        if key not in trained:
            assert np.array_equal(array, after[key]), key


def test_values_inside_are_compared_where_they_are_the_same(reference, train, chain):
    """The hidden value of a network is none: it has fewer neurons than the original's."""
    _, report = train(steps(2, hidden=1.0), candidate=chain)
    assert report.compared == ("y", "a2")
