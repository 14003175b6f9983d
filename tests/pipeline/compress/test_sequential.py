from dataclasses import replace

import numpy as np
import pytest
from tiny_models import samples, saved, two_layers

from compress_onnx.graph_passes.errors import NotDifferentiableError, RequestError
from compress_onnx.graph_passes.factorization import make_method
from compress_onnx.graph_passes.planning.decompositions import Decompositions
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.compress import sequential
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.compress.sequential import repaired
from compress_onnx.pipeline.evidence import collected
from compress_onnx.pipeline.evidence.sensitivity import measure_slopes
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.runtime.session import open_session, run

FEATURES = (24, 32, 16)


def compressed(tmp_path, method="auto", name="small.onnx", **options):
    """The calibration data's outputs of the original and of a compressed model, and the plan."""
    path = saved(tmp_path, two_layers(FEATURES)[0])
    data = samples(FEATURES[0], count=200)
    options = {"params": 0.5, "rank_multiple": 2, **options}
    request = CompressionSpec(method=MethodSpec(name=method), **options)
    made = learn(path, data).compress(request)
    plan = made.write(tmp_path / name)
    feeds = {"x": data.inputs["x"]}
    outputs = [run(open_session(p), feeds)["y"] for p in (path, tmp_path / name)]
    return *outputs, plan, made.basis


def error(before, after):
    return float(np.sum((before.astype(np.float64) - after) ** 2))


def test_repaired_weight_of_undisturbed_inputs_is_the_weight():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 6))
    weight = rng.standard_normal((6, 4))
    covariance = x.T @ x / 50
    np.testing.assert_allclose(
        repaired(weight, covariance, covariance @ weight, 0.1), weight, atol=1e-12
    )
    np.testing.assert_allclose(repaired(weight, 0 * covariance, covariance @ weight, 0.1), weight)


def test_repaired_weight_is_ridge_regression_towards_the_weight():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((50, 6))
    seen = x + 0.3 * rng.standard_normal(x.shape)
    weight = rng.standard_normal((6, 4))
    covariance, cross = seen.T @ seen / 50, seen.T @ x / 50
    ridge = 0.1 * np.trace(covariance) / 6
    stacked = np.vstack([seen / np.sqrt(50), np.sqrt(ridge) * np.eye(6)])
    target = np.vstack([x @ weight / np.sqrt(50), np.sqrt(ridge) * weight])
    expected = np.linalg.lstsq(stacked, target, rcond=None)[0]
    np.testing.assert_allclose(
        repaired(weight, covariance, cross @ weight, 0.1), expected, atol=1e-10
    )


@pytest.mark.parametrize("method", ["asvd", "gauss-newton"])
def test_later_sites_repair_earlier_ones(tmp_path, method):
    before, one_shot, *_ = compressed(tmp_path, method, sequential=False)
    _, sequential, plan, _ = compressed(tmp_path, method, sequential=True)
    assert plan.sequential
    assert error(before, sequential) < 0.97 * error(before, one_shot)


def test_auto_beats_uniform_asvd_at_the_same_size(tmp_path):
    before, uniform, small, _ = compressed(tmp_path, "asvd")
    _, best, plan, basis = compressed(tmp_path)
    assert basis.request.method.name == "gauss-newton"
    assert (plan.allocation, plan.sequential) == ("gauss-newton", True)
    assert plan.parameters_after <= 0.5 * plan.parameters_before
    assert small.allocation == "uniform"
    assert error(before, best) < error(before, uniform)


def test_sequential_is_deterministic(tmp_path):
    _, one, *_ = compressed(tmp_path)
    _, two, *_ = compressed(tmp_path)
    np.testing.assert_array_equal(one, two)


def test_a_plan_can_be_applied_again(tmp_path):
    _, first, plan, _ = compressed(tmp_path)
    learned = learn(tmp_path / "model.onnx", samples(FEATURES[0], count=200))
    learned.apply(plan).write(tmp_path / "again.onnx")
    data = learned.samples
    again = run(open_session(tmp_path / "again.onnx"), {"x": data.inputs["x"]})["y"]
    np.testing.assert_array_equal(first, again)


def test_what_is_damped_is_in_the_notes(tmp_path):
    plan = compressed(tmp_path)[2]
    assert any(note.startswith("gauss-newton damps") and "0.02" in note for note in plan.notes)
    assert any(note.startswith("sequential repair damps") for note in plan.notes)


def test_without_gradients_auto_measures_and_says_so(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise NotDifferentiableError("no reverse rule for Fancy")

    monkeypatch.setattr(collected, "output_gradients", refuse)
    before, after, plan, _ = compressed(tmp_path)
    assert plan.allocation == "sensitivity"
    assert {site.method.name for site in plan.factored} == {"asvd"}
    assert any("Fancy" in note for note in plan.notes)
    assert not any("gauss-newton damps" in note for note in plan.notes)
    assert error(before, after) < error(before, 0 * before)
    with pytest.raises(NotDifferentiableError, match="Fancy"):
        compressed(tmp_path, "gauss-newton")


def test_slope_of_the_last_layer_is_its_positions(tmp_path):
    path = saved(tmp_path, two_layers(FEATURES)[0])
    data = samples(FEATURES[0], count=40)
    learned = learn(path, data)
    original = learned.original
    method = make_method("asvd")

    def slopes_by(stats):
        return measure_slopes(
            original, method, Decompositions(stats), data, RunSettings(), share=0.5
        )

    slopes = slopes_by(learned.stats)
    # Its own error is the outputs' error; three positions a sample.
    assert slopes["second.weight"] == pytest.approx(3.0, rel=1e-3)
    shifted = replace(learned.stats["first"], mean=learned.stats["first"].mean + 1.0)
    worse = slopes_by({**learned.stats, "first": shifted})
    assert worse["first.weight"] > slopes["first.weight"]


def test_sequential_repair_sees_the_rounding(tmp_path):
    options = {"method": "asvd", "store": "int4", "sequential": True}
    with pytest.raises(RequestError, match="opset 21"):
        compressed(tmp_path, **options)
    before, sequential, plan, _ = compressed(tmp_path, **{**options, "store": "int8"})
    assert {site.store for site in plan.factored} == {"int8"}
    _, one_shot, _, _ = compressed(tmp_path, **{**options, "store": "int8", "sequential": False})
    assert error(before, sequential) < error(before, one_shot)


def test_what_is_looked_at_and_not_kept_changes_nothing(tmp_path, monkeypatch):
    assert FEATURES[1] > FEATURES[2]  # the second layer narrows
    _, streamed, plan, _ = compressed(tmp_path, name="streamed.onnx")
    monkeypatch.setattr(sequential, "_is_wide", lambda _group: False)
    _, held, other, _ = compressed(tmp_path, name="kept.onnx")
    np.testing.assert_array_equal(streamed, held)
    assert plan == other
