"""Recipes: validated data; what is wrong is named by its key."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.pipeline.recipe import NpzData, Recipe, read_recipe

RECIPES = sorted((Path(__file__).parents[3] / "models").rglob("*.yaml"))

FULL = """
name: tiny
source: {model: model.onnx, kind: onnx}
calibration: {kind: npz, path: data.npz, limit: 100}
validation: {kind: npz, path: held-out.npz, labels: labels}
mask: attention_mask
metric: {kind: accuracy, output: logits, top_k: 5}
compression:
  method: {name: svdlora, options: {stages: 3, layout: branches}}
  params: 0.5
  rank_multiple: 4
  select: {include: ["*.attention.*"], exclude: ["*.0.*"], group: attention}
gates:
  - {quantity: accuracy_drop, max: 0.01}
  - {quantity: speedup.cpu, min: 1.2}
benchmark: {provider: cpu, threads: 2, batch: 4, length: 64, warmup: 1, iterations: 20}
batch_size: 8
seed: 7
output: out
"""


def read(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return read_recipe(path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_in_the_repository_are_valid(path):
    assert read_recipe(path).name == path.stem


def test_there_are_recipes_to_check():
    assert RECIPES


def test_a_full_recipe_is_read(tmp_path):
    recipe = read(tmp_path, FULL)
    assert recipe.validation == NpzData(kind="npz", path=Path("held-out.npz"), labels="labels")
    assert recipe.compression.method.options == {"stages": 3, "layout": "branches"}
    assert [(g.quantity, g.min, g.max) for g in recipe.gates] == [
        ("accuracy_drop", None, 0.01),
        ("speedup.cpu", 1.2, None),
    ]
    assert recipe.benchmark is not None
    assert (recipe.benchmark.threads, recipe.seed, recipe.output) == (2, 7, Path("out"))


def test_it_survives_a_round_trip(tmp_path):
    recipe = read(tmp_path, FULL)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_a_recipe_may_leave_the_form_to_optimize(tmp_path):
    settings = "{max_drop: 0.02, objective: size, time: 4min, integers: false}"
    text = f"name: x\nsource: {{model: m}}\ncompression: {{optimize: {settings}}}\n"
    recipe = read(tmp_path, text)
    optimize = recipe.compression.optimize
    assert (optimize.max_drop, optimize.time, optimize.integers) == (0.02, 240, False)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert (
        recipe.compression.plain
        == Recipe.model_validate({"name": "x", "source": {"model": "m"}}).compression.plain
    )


def test_little_is_required(tmp_path):
    recipe = read(tmp_path, "name: x\nsource: {model: m.onnx}\n")
    assert recipe.compression.share == 0.5
    assert recipe.benchmark is not None
    assert read(tmp_path, "name: x\nsource: {model: m}\nbenchmark: null").benchmark is None


@pytest.mark.parametrize(
    ("line", "replacement", "named"),
    [
        ("seed: 7", "sed: 7", "sed: unknown key"),
        ("labels: labels", "label: y", "validation.npz.label: unknown key"),
        ("top_k: 5", "top_k: 0", "metric.accuracy.top_k"),
        ("params: 0.5", "params: 0.5\n  rank: 8", "compression: .*exclude each other"),
        ("params: 0.5", "params: 1.5", "compression: .*between 0 and 1"),
        ("params: 0.5", "params: 0.5\n  flops: 0.5", "compression: .*params and flops exclude"),
        (
            "params: 0.5",
            "optimize: {max_drop: 0.1}",
            "compression: .*optimize chooses the form itself: drop method, rank_multiple, select",
        ),
        ("params: 0.5", "optimize: {max_loss: 1}", "compression.optimize.max_loss: unknown key"),
        ("params: 0.5", "latency: fast", "compression.latency"),
        ("group: attention", "group: heads", "compression.select.group"),
        ("max: 0.01", "max: 0.01, min: 0", "gates.0: .*exactly one of min and max"),
        ("iterations: 20", "iterations: 1", "benchmark.iterations"),
        ("provider: cpu", "provider: tpu", "benchmark.provider"),
        ("name: tiny", "name: a/b", "name"),
        ("kind: onnx", "kind: tensorflow", "source.kind"),
        ("kind: accuracy", "kind: bleu", "metric"),
        ("batch_size: 8", "batch_size: 0", "batch_size"),
        *[
            (
                "seed: 7",
                f"domains: {{{taken}: {{kind: npz, path: x.npz}}}}",
                rf"domains\.{taken}\.\[key\]: .*no domain can be called '{taken}'",
            )
            for taken in ("cpu", "cuda", "openvino", "auto", "worst", "validation")
        ],
        ("seed: 7", "domains: {a.b: {kind: npz, path: x.npz}}", r"domains\.a\.b\.\[key\]"),
        (
            "seed: 7",
            "broader: {web: {kind: npz, path: x.npz}}",
            "the document: .*broader data are for shrinkage: add it to compression",
        ),
        (
            "params: 0.5",
            "params: 0.5\n  shrinkage: broader:0.3",
            "the document: .*shrinkage towards broader data needs some: add broader",
        ),
        ("params: 0.5", "params: 0.5\n  shrinkage: broader:3", r"compression.shrinkage"),
        (
            "params: 0.5",
            "params: 0.5\n  shrinkage: {towards: web, strength: 0.3}",
            r"compression.shrinkage.towards",
        ),
        ("seed: 7", "domains: {'a|b': {kind: npz, path: x.npz}}", r"domains\.a\|b\.\[key\]"),
        ("seed: 7", "domains: {verses: {kind: npz}}", r"domains\.verses\.npz\.path"),
        (
            "validation: {kind: npz, path: held-out.npz, labels: labels}",
            "domains: {verses: {kind: npz, path: x.npz}}",
            "the document: .*add validation",
        ),
        (
            "metric: {kind: accuracy, output: logits, top_k: 5}",
            "metric: {kind: translation}\ndomains: {verses: {kind: npz, path: x.npz}}",
            "the document: .*translation has languages",
        ),
        (
            "{kind: npz, path: data.npz, limit: 100}",
            "{kind: masked, sentences: {kind: npz, path: data.npz}}",
            "calibration.masked.sentences",
        ),
        (
            "{kind: npz, path: data.npz, limit: 100}",
            "{kind: masked, sentences: {kind: datasets, path: x, text: a, label: b}}",
            "calibration.masked: .*the masked words are the labels",
        ),
    ],
)
def test_a_mistake_is_named_by_its_key(tmp_path, line, replacement, named):
    assert line in FULL
    with pytest.raises(RequestError, match=rf"recipe\.yaml: {named}"):
        read(tmp_path, FULL.replace(line, replacement))


def test_several_mistakes_are_counted(tmp_path):
    with pytest.raises(RequestError, match=r"\(and 1 more\)"):
        read(tmp_path, FULL.replace("seed: 7", "sed: 7").replace("batch_size: 8", "batch: 8"))


@pytest.mark.parametrize(
    "text", ["name: [", "\tname: x", "name: !!python/object/apply:os.getcwd []", "a: b: c"]
)
def test_what_is_no_yaml_is_refused_in_one_line(tmp_path, text):
    with pytest.raises(RequestError, match=r"recipe\.yaml is not valid YAML") as refused:
        read(tmp_path, text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "3", "- a", "just text"])
def test_what_is_no_mapping_is_refused(tmp_path, text):
    with pytest.raises(RequestError, match="the document"):
        read(tmp_path, text)


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(RequestError, match=r"cannot read the recipe .*none\.yaml"):
        read_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize(("preset", "least"), [("99", 0.99), (99.9, 0.999)])
def test_a_preset_is_a_gate_on_what_is_kept(preset, least):
    values = {"name": "x", "source": {"model": "m"}, "preset": preset}
    data = {"kind": "npz", "path": "data.npz"}
    metric = {"kind": "accuracy"}
    recipe = Recipe.model_validate({**values, "validation": data, "metric": metric})
    assert [(gate.quantity, gate.min) for gate in recipe.gates] == [("kept", least)]
    again = Recipe.model_validate(recipe.model_dump(exclude_unset=True))
    assert again.gates == recipe.gates
    with pytest.raises(ValidationError, match="share of a metric"):
        Recipe.model_validate(values)
    with pytest.raises(ValidationError, match="preset"):
        Recipe.model_validate({**values, "preset": "98"})
