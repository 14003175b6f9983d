"""What a table is about: a model, its calibration samples, and others that chose nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import onnx_ir as ir

from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.compress.holdout import hold_out, metric_for
from compress_onnx.pipeline.compress.learn import Learned, learn
from compress_onnx.pipeline.data.feeds import as_samples
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.cache import ArrayCache, default_folder
from compress_onnx.pipeline.files.original import Original
from compress_onnx.pipeline.recipe import MetricSpec, read_recipe
from compress_onnx.pipeline.recipes.experiment import settings_of
from compress_onnx.pipeline.recipes.single import ModelExperiment, prepare_model
from compress_onnx.pipeline.runtime.inputs import load_structure, model_inputs
from compress_onnx.pipeline.runtime.samples import Samples


class Material(NamedTuple):
    """What rows are made of.

    Attributes:
        original: the model as it was.
        samples: what ranges are found on.
        settings: how it is run.
        thinned: the model with a share of the parameters of its feed-forward networks.
    """

    original: Original
    samples: Samples
    settings: RunSettings
    thinned: Callable[[float], ir.Model]


class Subject(NamedTuple):
    """A model, and what it is held against."""

    material: Material
    held_out: Samples
    metric: MetricSpec | None


def material_of(learned: Learned) -> Material:
    """Fewer neurons are chosen by what was learned."""
    assert learned.samples is not None

    def thinned(share: float) -> ir.Model:
        method = MethodSpec(name="neurons")
        request = CompressionSpec(method=method, params=share, sequential=False)
        return learned.compress(request).model

    return Material(learned.original, learned.samples, learned.settings, thinned)


def prepared(folder: Path) -> ModelExperiment:
    """MiniLM as its recipe has it, exported into ``folder`` and learned."""
    recipe = read_recipe(Path("models/minilm.yaml"))
    cache = ArrayCache(default_folder())
    settings = settings_of(recipe, RunSettings(cache=cache, allow_code=True))
    return prepare_model(recipe, folder, base_dir=Path("models"), settings=settings)


def by_recipe(folder: Path) -> Subject:
    """MiniLM, its calibration sentences, and those that it was never calibrated on."""
    minilm = prepared(folder)
    assert minilm.held_out is not None
    return Subject(material_of(minilm.learned), minilm.held_out, minilm.recipe.metric)


def by_files(model: Path, data: Path) -> Subject:
    """A sentence encoder and its samples, of which every fifth is held out."""
    samples, held_out = hold_out(as_samples(data, model_inputs(load_structure(model))))
    learned = learn(model, samples, RunSettings(cache=ArrayCache(default_folder())))
    return Subject(material_of(learned), held_out, metric_for(model, held_out, "pooled"))
