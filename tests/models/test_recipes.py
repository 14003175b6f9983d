"""The main recipes of the repository, run as a user runs them: what the README claims must hold."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.bundle import verify_manifest
from compress_onnx.pipeline.files.cache import ArrayCache
from compress_onnx.pipeline.recipe import read_recipe
from compress_onnx.pipeline.recipes.experiment import settings_of
from compress_onnx.pipeline.recipes.run import run_recipe
from compress_onnx.pipeline.recipes.single import ModelExperiment, prepare_model
from compress_onnx.pipeline.runtime.samples import Samples

pytestmark = pytest.mark.slow

MODELS = Path(__file__).parents[2] / "models"
# One worker exports and calibrates a model for all of its tests.
MINILM = pytest.mark.xdist_group("minilm")
RECIPES = [pytest.param("minilm-lowrank", marks=MINILM), "digits-vit"]


@pytest.fixture(scope="module")
def calibrations(tmp_path_factory) -> ArrayCache:
    return ArrayCache(tmp_path_factory.mktemp("calibrations"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, calibrations) -> Callable[[str], ModelExperiment]:
    @cache
    def prepare_once(name: str) -> ModelExperiment:
        recipe = read_recipe(MODELS / f"{name}.yaml")
        folder = tmp_path_factory.mktemp(name)
        settings = settings_of(recipe, RunSettings(cache=calibrations, allow_code=True))
        return prepare_model(recipe, folder, base_dir=MODELS, settings=settings)

    return prepare_once


@pytest.fixture(params=RECIPES)
def experiment(request, prepared) -> ModelExperiment:
    return prepared(request.param)


@pytest.mark.parametrize("method", ["svd", "asvd", "svdlora:branches"])
def test_full_rank_reproduces_the_original(experiment, tmp_path, method):
    name, _, layout = method.partition(":")
    options = {"layout": layout, "stages": 2} if layout else {}
    request = CompressionSpec(
        method=MethodSpec(name=name, options=options), rank=100_000, allow_larger=True
    )

    plan = experiment.write(experiment.compress(request), tmp_path / "full.onnx")

    assert len(plan.factored) == len(plan.sites)
    assert all(site.error.reached < 1e-5 for site in plan.factored)
    report = experiment.validate(tmp_path / "full.onnx")
    assert report.samples >= 500
    assert all(output.relative_l2 < 1e-4 for output in report.outputs)


def test_the_export_agrees_with_pytorch(experiment):
    parity = experiment.exported.report.parity

    assert len(parity) == 2
    assert experiment.exported.report.opset == 23
    assert all(row.relative_l2 < 1e-5 for size in parity for row in size.outputs)


def test_calibration_and_validation_share_nothing(experiment):
    recipe = experiment.recipe
    assert recipe.calibration.loader == recipe.validation.loader
    assert recipe.calibration.arguments != recipe.validation.arguments
    assert isinstance(experiment.held_out, Samples)


@MINILM
def test_minilm_methods_rank_as_published(prepared, tmp_path):
    experiment = prepared("minilm-lowrank")
    cosine = {}
    for method in ("svd", "svdlora", "asvd-diagonal", "asvd"):
        request = CompressionSpec(method=MethodSpec(name=method), params=0.5)
        plan = experiment.write(experiment.compress(request), tmp_path / f"{method}.onnx")
        assert plan.parameters_after <= 0.5 * plan.parameters_before
        cosine[method] = experiment.validate(tmp_path / f"{method}.onnx").metrics["cosine"]

    assert abs(cosine["svd"] - cosine["svdlora"]) < 1e-3
    assert cosine["svd"] < cosine["asvd-diagonal"] < cosine["asvd"]
    assert cosine["asvd"] >= 0.84


@pytest.mark.timeout(1800)  # MiniLM on one thread beside another worker
@pytest.mark.parametrize(
    ("name", "orm_class", "output"),
    [
        *(
            pytest.param(name, "ORTModelForFeatureExtraction", "last_hidden_state", marks=MINILM)
            for name in ("minilm", "minilm-lowrank")
        ),
        ("digits-vit", "ORTModelForImageClassification", "logits"),
    ],
)
def test_the_bundle_passes_its_gates_and_loads_with_optimum(
    tmp_path, calibrations, name, orm_class, output
):
    import optimum.onnxruntime
    import torch

    recipe = read_recipe(MODELS / f"{name}.yaml")
    settings = RunSettings(cache=calibrations, allow_code=True)
    report = run_recipe(recipe, tmp_path / name, base_dir=MODELS, settings=settings)

    assert report.passed, report.gates
    assert recipe.gates
    verify_manifest(tmp_path / name)
    model = getattr(optimum.onnxruntime, orm_class).from_pretrained(tmp_path / name)
    if name.startswith("minilm"):
        from transformers import AutoTokenizer

        tokens = AutoTokenizer.from_pretrained(tmp_path / name)(["Hello."], return_tensors="pt")
        result = model(**tokens)[output]
    else:
        result = model(pixel_values=torch.zeros(1, 1, 8, 8))[output]
    assert np.isfinite(np.asarray(result)).all()
