"""The trained Switch transformer in the repository: its experts, in both layouts, compressed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest

from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.recipe import read_recipe
from compress_onnx.pipeline.recipes.experiment import settings_of
from compress_onnx.pipeline.recipes.run import run_recipe
from compress_onnx.pipeline.recipes.single import ModelExperiment, prepare_model
from models.data.digits import digit_images

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("digits-switch")]

MODELS = Path(__file__).parents[2] / "models"
RECIPE = read_recipe(MODELS / "digits-switch.yaml")
SOURCES = {layout: f"digits_switch.switch:{layout}" for layout in ("stacked", "separate")}


@pytest.fixture(scope="module")
def switch():
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("switch", MODELS / "digits_switch" / "switch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Callable[[str], ModelExperiment]:
    @cache
    def prepare_once(layout: str) -> ModelExperiment:
        source = RECIPE.source.model_copy(update={"model": SOURCES[layout]})
        recipe = RECIPE.model_copy(update={"source": source, "benchmark": None})
        settings = settings_of(recipe, RunSettings(allow_code=True))
        folder = tmp_path_factory.mktemp(layout)
        return prepare_model(recipe, folder, base_dir=MODELS, settings=settings)

    return prepare_once


@pytest.fixture(params=SOURCES)
def experiment(request, prepared) -> ModelExperiment:
    return prepared(request.param)


def logits(model, pixels):
    torch = pytest.importorskip("torch")
    with torch.inference_mode():
        return model.eval()(torch.from_numpy(pixels))["logits"].numpy()


def compressed(experiment, folder, method="svd", **request):
    request = CompressionSpec(
        method=MethodSpec(name=method), select=RECIPE.compression.select, **request
    )
    plan = experiment.write(experiment.compress(request), folder / "model.onnx")
    return plan, experiment.validate(folder / "model.onnx")


def test_weights_are_small_and_accurate(switch):
    assert switch.WEIGHTS.stat().st_size <= 3_000_000
    pixels, labels = digit_images("validation")
    model, _ = switch.stacked()
    assert np.mean(logits(model, pixels).argmax(axis=1) == labels) >= 0.97


def test_both_layouts_are_the_same_model(switch):
    pixels, _ = digit_images("validation")
    stacked, separate = (logits(build()[0], pixels) for build in (switch.stacked, switch.separate))
    np.testing.assert_allclose(stacked, separate, atol=1e-5)


def test_every_expert_has_work(switch):
    """Experts that see no token could be replaced by anything, and would prove nothing."""
    torch = pytest.importorskip("torch")
    pixels, _ = digit_images("validation")
    model, _ = switch.stacked()
    model.train()
    with torch.inference_mode():
        model(torch.from_numpy(pixels))
    # E·Σ f_e·P_e is E when one expert does it all, and E/(E−1) when one does nothing.
    assert all(layer.imbalance < 1.2 for layer in model.switches)


def test_experts_are_factored_one_by_one(experiment, tmp_path):
    plan, validation = compressed(experiment, tmp_path, params=0.5)
    assert {".experts." in site.site for site in plan.factored} == {True}
    assert sum(site.matrices for site in plan.factored) == 2 * 2 * 4
    assert plan.parameters_after <= 0.5 * plan.parameters_before
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)
    assert validation.metrics["accuracy_drop"] <= 0.01


def test_full_rank_reproduces_the_original(experiment, tmp_path):
    plan, validation = compressed(experiment, tmp_path, rank=1000, allow_larger=True)
    assert all(site.error.reached < 1e-5 for site in plan.factored)
    assert all(output.relative_l2 < 1e-4 for output in validation.outputs)


def test_rank_1_damages_the_logits(experiment, tmp_path):
    """The accuracy hardly: ten digits do not need what the experts know."""
    _, half = compressed(experiment, tmp_path, params=0.5)
    _, least = compressed(experiment, tmp_path, rank=1)
    assert least.outputs[0].relative_l2 > 2 * half.outputs[0].relative_l2 > 0.02


def test_what_experts_get_is_worth_more_than_their_weights(experiment, tmp_path):
    """At a third of their parameters, on held-out digits."""
    errors = {}
    for method in ("svd", "asvd", "auto"):
        plan, validation = compressed(experiment, tmp_path, method, params=0.33)
        errors[method] = validation.outputs[0].relative_l2
        assert plan.error.left_out == 0
        assert validation.metrics["accuracy_drop"] <= 0.01
    assert errors["asvd"] < 0.5 * errors["svd"]
    # In products of their own less (0.67 against 0.37): there repair in sequence does some harm.
    assert errors["auto"] < 0.8 * errors["asvd"]


def test_auto_is_gauss_newton_in_both_layouts(experiment, tmp_path):
    plan, _ = compressed(experiment, tmp_path, "auto", params=0.33)
    assert {site.method.name for site in plan.factored} == {"gauss-newton"}
    assert {site.reason for site in plan.factored} == {"33% of parameters, gauss-newton"}


def test_both_layouts_lose_the_same(prepared, tmp_path):
    losses = []
    for layout in SOURCES:
        candidate = tmp_path / layout
        candidate.mkdir()
        _, validation = compressed(prepared(layout), candidate, rank=40)
        losses.append(validation.outputs[0].relative_l2)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] > 0.01


def test_the_recipe_passes_its_gates(tmp_path):
    recipe = RECIPE.model_copy(update={"benchmark": None})
    report = run_recipe(
        recipe, tmp_path / "bundle", base_dir=MODELS, settings=RunSettings(allow_code=True)
    )
    assert report.gates
    assert all(gate.passed for gate in report.gates)
