"""Shrinkage by request: nothing at 0, the broader data alone at 1, in the plan in between."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_models import samples, saved, two_layers

from compress_onnx.graph_passes.errors import NotDifferentiableError, RequestError
from compress_onnx.graph_passes.planning.plan import MethodSpec, read_plan
from compress_onnx.graph_passes.planning.request import CompressionSpec, Shrinkage
from compress_onnx.pipeline.api import request_of
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.compress.strength import damage
from compress_onnx.pipeline.evidence import collected
from compress_onnx.pipeline.evidence.collected import Evidence
from compress_onnx.pipeline.runtime.samples import Samples

SIZES = (12, 24, 8)
WAYS = [
    {"method": "auto"},
    {"method": "auto", "ffns": "neurons"},
    {"method": "gauss-newton"},
    {"method": "asvd"},
    {"method": "asvd", "allocation": "sensitivity", "sequential": True},
]


def narrow(seed: int, count: int = 120) -> Samples:
    """Inputs of few directions, others for each seed."""
    rng = np.random.default_rng(seed)
    plain = samples(SIZES[0], count, seed).inputs["x"]
    mixing = rng.standard_normal((SIZES[0], 4)) @ rng.standard_normal((4, SIZES[0]))
    return Samples({"x": (plain @ mixing / 4 + 0.05 * plain).astype(np.float32)})


@pytest.fixture
def model(tmp_path):
    return saved(tmp_path, two_layers(SIZES)[0])


def request(**options) -> CompressionSpec:
    return request_of(**{"params": 0.5, "rank_multiple": 1, **options})


def written(learned, asked, tmp_path) -> bytes:
    learned.compress(asked).write(tmp_path / "small.onnx")
    return (tmp_path / "small.onnx").read_bytes()


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("towards", ["broader", "identity"])
def test_strength_0_changes_no_bit(model, tmp_path, way, towards):
    learned = learn(model, narrow(1), broader={"other": narrow(2)})
    plain = written(learned, request(**way), tmp_path)
    assert written(learned, request(**way, shrinkage=f"{towards}:0"), tmp_path) == plain


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_strength_1_towards_a_set_is_calibrating_on_it(model, tmp_path, way):
    pulled = learn(model, narrow(1), broader={"other": narrow(2)})
    made = written(pulled, request(**way, shrinkage="broader:1"), tmp_path)
    assert made == written(learn(model, narrow(2)), request(**way), tmp_path)
    assert made != written(learn(model, narrow(1)), request(**way), tmp_path)


@pytest.mark.parametrize("way", WAYS[:3], ids=str)
@pytest.mark.parametrize("towards", ["broader", "identity"])
def test_in_between_it_trades_one_domain_for_another(model, way, towards):
    first, second = narrow(1), narrow(2)
    learned = learn(model, first, broader={"other": second})
    known = [Evidence(learned.original, each, learned.settings) for each in (first, second)]
    damages = []
    for strength in (0, 0.5):
        asked = request(**way, sequential=False, shrinkage=f"{towards}:{strength}")
        made = learned.compress(asked)
        damages.append([damage(made, each, "positions") for each in known])
    (own, other), (own_pulled, other_pulled) = damages
    assert own < own_pulled
    assert other > other_pulled


def test_two_sets_of_which_one_is_the_calibration_data_again_change_little(model, tmp_path):
    """Shares, not sizes, count: the same rows again are the same metric."""
    data = narrow(1)
    learned = learn(model, data, broader={"again": data.take(len(data))})
    plain = learned.compress(request()).factorizations()
    again = learned.compress(request(shrinkage="broader:0.5")).factorizations()
    # Other random signs make no difference either: the gradients are of the same seed.
    for key, made in plain.items():
        np.testing.assert_allclose(again[key].product(), made.product(), atol=1e-5)


@pytest.mark.parametrize("way", WAYS[:2], ids=str)
def test_a_plan_carries_its_shrinkage(model, tmp_path, way):
    learned = learn(model, narrow(1), broader={"other": narrow(2)})
    compressed = learned.compress(request(**way, shrinkage="broader:0.3"))
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(compressed.to_dict()))
    plan = read_plan(path)
    assert plan.shrinkage == Shrinkage(towards="broader", strength=0.3)
    compressed.write(tmp_path / "one.onnx")
    learned.apply(plan).write(tmp_path / "other.onnx")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "other.onnx").read_bytes()


@pytest.mark.parametrize("towards", ["broader", "identity"])
def test_auto_takes_the_least_worst_and_says_so(model, towards):
    sets = {"second": narrow(2), "third": narrow(3)}
    learned = learn(model, narrow(1), broader=sets)
    asked = request(shrinkage=f"{towards}:auto")
    plan = learned.compress(asked).plan
    (note,) = [note for note in plan.notes if note.startswith("shrinkage")]
    assert plan.shrinkage is not None
    assert f"towards {towards} has the strength {plan.shrinkage.strength:g}" in note
    assert "second, third" in note
    assert plan.shrinkage.strength > 0
    # The choice is made once for all budgets.
    other = learned.compress(asked.model_copy(update={"params": 0.7})).plan
    assert other.shrinkage == plan.shrinkage


def test_predicted_damage_is_that_of_the_outputs_of_a_linear_layer(model):
    """One set, one site: to second order is exact where the outputs are linear in the weight."""
    data = narrow(1)
    learned = learn(model, data)
    asked = request(method="gauss-newton", select={"include": ["*second*"]})
    made = learned.compress(asked)
    known = Evidence(learned.original, data, learned.settings)
    (product,) = [found.product() for found in made.factorizations().values()]
    (site,) = [s for s in learned.original.table.sites if "second" in s.name]
    stats = known.stats[site.name]
    error = product - site.weight.array()
    # E[g gᵀ] over signs is the identity at each of the rows of a sample.
    rows = stats.count / len(data)
    centred = rows * float(np.vdot(error, stats.covariance @ error))
    assert damage(made, known, "positions") == pytest.approx(centred, rel=0.05)


@pytest.mark.parametrize(
    ("broader", "shrinkage", "told"),
    [
        ({}, "broader:0.5", "needs some: give broader sets"),
        ({}, "identity:auto", "needs 1 or more, not 0"),
        ({"one": narrow(2)}, "broader:auto", "needs 2 or more, not 1"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(model, broader, shrinkage, told):
    learned = learn(model, narrow(1), broader=broader)
    with pytest.raises(RequestError, match=told) as caught:
        learned.compress(request(shrinkage=shrinkage))
    assert "\n" not in str(caught.value)


def test_without_gradients_a_strength_must_be_given(model, monkeypatch):
    def refuse(*_):
        raise NotDifferentiableError("no gradient of Fancy")

    monkeypatch.setattr(collected, "output_gradients", refuse)
    learned = learn(model, narrow(1), broader={"two": narrow(2), "three": narrow(3)})
    with pytest.raises(RequestError, match=r"give a strength \(no gradient of Fancy\)") as caught:
        learned.compress(request(method="asvd", shrinkage="broader:auto"))
    assert "\n" not in str(caught.value)
    plan = learned.compress(request(method="asvd", shrinkage="broader:0.5")).plan
    assert plan.shrinkage == Shrinkage(strength=0.5)


@pytest.mark.parametrize("text", ["broader:2", "broader:-1", "nowhere:0.5", "identity:much"])
def test_bad_shrinkage_is_named(text):
    with pytest.raises(RequestError, match="shrinkage") as caught:
        request(shrinkage=text)
    assert "\n" not in str(caught.value)


def test_weights_alone_cannot_be_shrunk(model):
    with pytest.raises(RequestError, match="give calibration data"):
        learn(model).compress(CompressionSpec(shrinkage=Shrinkage(strength=0.5)))
    plan = learn(model, narrow(1)).compress(request(shrinkage="identity:0.5")).plan
    auto = plan.model_copy(update={"shrinkage": Shrinkage(towards="identity")})
    with pytest.raises(RequestError, match="write a number, not auto"):
        learn(model, narrow(1)).apply(auto)


def test_a_method_of_its_own_follows_the_metric(model):
    """At full strength towards the identity, asvd is svd."""
    learned = learn(model, narrow(1))
    pulled = learned.compress(request(method="asvd", shrinkage="identity:1")).factorizations()
    plain = learn(model).compress(request(method=MethodSpec(name="svd"))).factorizations()
    for key, made in plain.items():
        np.testing.assert_allclose(pulled[key].product(), made.product(), atol=1e-5)
