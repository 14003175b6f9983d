"""What a table is about: a model, what was learned of it, and samples that chose nothing."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from compress_onnx.pipeline.compress.holdout import hold_out, metric_for
from compress_onnx.pipeline.compress.learn import Learned, learn
from compress_onnx.pipeline.data.feeds import as_samples
from compress_onnx.pipeline.data.sources import load_samples
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.cache import ArrayCache, default_folder
from compress_onnx.pipeline.recipe import GeneralTextData, MetricSpec, PythonData, read_recipe
from compress_onnx.pipeline.recipes.experiment import settings_of
from compress_onnx.pipeline.recipes.single import ModelExperiment, prepare_model
from compress_onnx.pipeline.recover.recover import Lessons
from compress_onnx.pipeline.runtime.inputs import load_structure, model_inputs
from compress_onnx.pipeline.runtime.samples import Samples

LESSONS = GeneralTextData(
    kind="general-text", sources=("docstrings", "library", "reference"), samples=4000
)
"""What encoders are trained on: no sentence that accuracy is measured on is among it."""

MINILM = Path("models/minilm.yaml")


class Subject(NamedTuple):
    """A model, and what it is held against.

    Attributes:
        learned: the model, and all that its calibration samples say.
        held_out: samples that accuracy is measured on.
        metric: of the accuracy; None compares raw outputs.
        lessons: what models are trained on; the calibration samples where that is None.
        domains: samples of other kinds, by name, that accuracy is measured on too.
        labelled: samples with topics, of which those of one topic are looked for.
    """

    learned: Learned
    held_out: Samples
    metric: MetricSpec | None
    lessons: Lessons | None = None
    domains: Mapping[str, Samples] = MappingProxyType({})
    labelled: Samples | None = None

    @property
    def original(self) -> Path:
        """The file of the model."""
        return self.learned.original.path

    @property
    def samples(self) -> Samples:
        """What the model was calibrated on."""
        samples = self.learned.samples
        assert samples is not None
        return samples


def prepared(folder: Path, path: Path = MINILM) -> ModelExperiment:
    """The model of the recipe in ``path``, exported into ``folder`` and learned."""
    recipe = read_recipe(path)
    cache = ArrayCache(default_folder())
    settings = settings_of(recipe, RunSettings(cache=cache, allow_code=True))
    return prepare_model(recipe, folder, base_dir=path.parent, settings=settings)


def by_recipe(folder: Path, path: Path = MINILM, topics: str | None = None) -> Subject:
    """A sentence encoder, its calibration sentences, and those that it was never calibrated on.

    Args:
        folder: for the exported model.
        path: of the recipe.
        topics: ``PATH.py:FUNCTION`` beside the recipe; of ``split`` it returns texts and topics.
    """
    encoder = prepared(folder, path)
    assert encoder.held_out is not None
    declared = model_inputs(load_structure(encoder.reference))
    load = partial(
        load_samples,
        base_dir=path.parent,
        tokenizer_dir=encoder.exported.tokenizer_dir,
        mask=encoder.recipe.mask,
        input_names=[value.name for value in declared],
        declared=declared,
    )
    labelled = None
    if topics is not None:
        spec = PythonData(kind="python", loader=topics, arguments={"split": "validation"})
        labelled = load(spec, allow_code=True)
    return Subject(
        encoder.learned,
        encoder.held_out,
        encoder.recipe.metric,
        Lessons(load(LESSONS)),
        encoder.domains,
        labelled,
    )


def by_files(model: Path, data: Path) -> Subject:
    """A sentence encoder and its samples, of which every fifth is held out."""
    samples, held_out = hold_out(as_samples(data, model_inputs(load_structure(model))))
    learned = learn(model, samples, RunSettings(cache=ArrayCache(default_folder())))
    return Subject(learned, held_out, metric_for(model, held_out, "pooled"))
