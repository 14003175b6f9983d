"""Data that a function beside the recipe returns: what it may return, and when it may run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import small_models as small
from cli_runner import Cli, error_line

from compress_onnx.graph_passes.errors import DataError, RequestError
from compress_onnx.pipeline.data import sources
from compress_onnx.pipeline.data.pairs import SentencePair
from compress_onnx.pipeline.data.parallel import load_pairs
from compress_onnx.pipeline.data.python import Arrays, call_loader
from compress_onnx.pipeline.data.sources import load_samples
from compress_onnx.pipeline.files.python_code import locate
from compress_onnx.pipeline.recipe import PythonData

LOADERS = """
from typing import Literal

import numpy as np
from compress_onnx.pipeline.data.pairs import SentencePair

from .beside import WORDS

NUMBER = 3

def texts(split: Literal["train", "test"], times: int = 1) -> list[str]:
    return [f"{split} {word}" for word in WORDS] * times

def inputs() -> dict:
    return {"x": np.arange(12.0).reshape(6, 2)}

def labelled() -> tuple:
    return inputs(), np.arange(6)

def labelled_texts(count: int = 2) -> tuple:
    return ["one", "two", "three"], ["odd", "even", "odd"][:count]

def pairs() -> list:
    return [SentencePair(to, f"s{n}", f"t{n}") for to in ("fr", "de") for n in range(5)]

def nothing() -> list:
    return []

def numbers() -> list:
    return [1, 2]

def unnamed() -> dict:
    return {1: np.zeros(2)}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "recipe" / "data").mkdir(parents=True)
    (tmp_path / "recipe" / "data" / "loaders.py").write_text(LOADERS)
    (tmp_path / "recipe" / "data" / "beside.py").write_text("WORDS = ('one', 'two')\n")
    return tmp_path / "recipe"


def spec(function, file="data/loaders.py", **settings):
    return PythonData(kind="python", loader=f"{file}:{function}", **settings)


def call(folder, function, **settings):
    return call_loader(spec(function, **settings), base_dir=folder, allow_code=True)


def samples(folder, wanted):
    return load_samples(
        wanted, base_dir=folder, tokenizer_dir=None, mask=None, input_names=["x"], allow_code=True
    )


def test_texts_by_arguments_that_are_checked(folder):
    assert call(folder, "texts", arguments={"split": "test"}) == ["test one", "test two"]
    for arguments, problem in [
        ({"split": "dev"}, "split"),
        ({}, "split"),
        ({"split": "test", "no": 1}, "no"),
    ]:
        with pytest.raises(RequestError, match=rf"loaders\.py:texts: {problem}"):
            call(folder, "texts", arguments=arguments)


def test_a_module_is_imported_from_the_recipes_folder(folder):
    (folder / "loading_module.py").write_text("def texts():\n    return ['a']\n")
    wanted = PythonData(kind="python", loader="loading_module:texts")
    assert call_loader(wanted, base_dir=folder, allow_code=True) == ["a"]


def test_files_of_one_name_in_two_folders_are_two(folder, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "loaders.py").write_text("def texts(split):\n    return ['other']\n")
    arguments = {"split": "test"}
    assert call(folder, "texts", arguments=arguments) != ["other"]
    assert call(tmp_path / "other", "texts", file="loaders.py", arguments=arguments) == ["other"]


def test_arrays_with_labels_are_samples_and_limited(folder):
    found = samples(folder, spec("labelled", limit=4))
    assert found.inputs["x"].shape == (4, 2)
    np.testing.assert_array_equal(found.inputs["x"][:, 0], 2 * found.labels)
    assert found.origin == "data/loaders.py:labelled()"
    assert samples(folder, spec("inputs")).labels is None
    assert isinstance(call(folder, "inputs"), Arrays)


def test_texts_with_labels_keep_them_when_limited(folder, monkeypatch):
    monkeypatch.setattr(
        sources, "tokenize", lambda texts, *_, **__: {"x": np.array([[len(t)] for t in texts])}
    )
    loader = spec("labelled_texts", arguments={"count": 3})
    everything = samples(folder, loader)
    assert everything.labels.tolist() == ["odd", "even", "odd"]
    assert everything.inputs["x"].tolist() == [[3], [3], [5]]
    fewer = samples(folder, loader.model_copy(update={"limit": 2}))
    label_of = {3: {"odd", "even"}, 5: {"odd"}}
    assert len(fewer) == len(fewer.labels) == 2
    for (length,), label in zip(fewer.inputs["x"], fewer.labels, strict=True):
        assert label in label_of[length]


def test_each_text_needs_its_label(folder):
    with pytest.raises(DataError, match=r"returned 3 texts with labels \[2\]: give each"):
        call(folder, "labelled_texts")


def test_labelled_texts_are_no_translations(folder):
    wanted = spec("labelled_texts", arguments={"count": 3})
    with pytest.raises(RequestError, match="returns no translations"):
        load_pairs(wanted, base_dir=folder, seed=0, allow_code=True)


def test_pairs_are_limited_evenly_by_language(folder):
    def load(**settings):
        return load_pairs(spec("pairs", **settings), base_dir=folder, seed=0, allow_code=True)

    assert [pair.language for pair in load()] == ["fr"] * 5 + ["de"] * 5
    assert [pair.language for pair in load(limit=5)] == ["fr"] * 3 + ["de"] * 3
    assert set(load(limit=5)) < set(load())
    assert load()[0] == SentencePair("fr", "s0", "t0")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nothing", "returned no data"),
        ("numbers", "not a list of int"),
        ("unnamed", "not dict"),
    ],
)
def test_what_is_no_data(folder, function, message):
    with pytest.raises(DataError, match=message):
        call(folder, function)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ("data/loaders.py:absent", "no function absent"),
        ("data/loaders.py:NUMBER", "no function NUMBER"),
        ("data/loaders.py", "is no function"),
        ("data/none.py:texts", "there is no file"),
        ("../outside.py:texts", "must be in the recipe's folder"),
        ("no_such_module:texts", "cannot import no_such_module:texts"),
        ("data/broken.py:texts", "cannot import data/broken.py:texts"),
        ("data/absolute.py:texts", "cannot import data/absolute.py:texts"),
    ],
)
def test_functions_that_cannot_be_had(folder, loader, message):
    (folder.parent / "outside.py").write_text("raise SystemExit('it ran')\n")
    (folder / "data" / "broken.py").write_text("def texts(:\n")
    (folder / "data" / "absolute.py").write_text("import beside\n")
    with pytest.raises(RequestError, match=message) as refused:
        call_loader(PythonData(kind="python", loader=loader), base_dir=folder, allow_code=True)
    assert "\n" not in str(refused.value)


def test_a_link_does_not_lead_out_of_the_folder(folder):
    (folder.parent / "outside.py").write_text("def texts(): ...\n")
    (folder / "link.py").symlink_to(folder.parent / "outside.py")
    with pytest.raises(RequestError, match="must be in the recipe's folder"):
        locate("link.py:texts", folder)


@pytest.mark.parametrize("load", [call_loader, load_pairs])
def test_nothing_is_run_without_permission(folder, load):
    (folder / "data" / "loaders.py").write_text("raise SystemExit('it ran')\n")
    settings = {"seed": 0} if load is load_pairs else {}
    with pytest.raises(RequestError, match=r"runs Python code, data/loaders\.py:texts"):
        load(spec("texts"), base_dir=folder, allow_code=False, **settings)


@pytest.fixture
def cli(capsys, monkeypatch):
    return Cli(capsys, monkeypatch)


@pytest.mark.parametrize("command", ["run", "sweep", "analyze"])
@pytest.mark.parametrize("place", ["calibration", "validation", "recovery", "source"])
def test_a_recipe_with_code_is_refused_in_one_line(tmp_path, cli, command, place):
    small.save(small.perceptron(), tmp_path / "model.onnx")
    (tmp_path / "code.py").write_text("raise SystemExit('it ran')\n")
    code = {"kind": "python", "loader": "code.py:texts"}
    recipe = {"name": "x", "source": {"model": "model.onnx"}}
    if place == "source":
        recipe["source"] = {"model": "code:factory"}
    elif place == "recovery":
        recipe["recovery"] = {"data": {"kind": "masked", "sentences": code}}
    else:
        recipe[place] = code
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    output = [] if command == "analyze" else ["-o", tmp_path / "out"]

    line = error_line(cli(command, tmp_path / "recipe.yaml", *output, code=2))

    assert ("code:factory" if place == "source" else "code.py:texts") in line
    assert "--allow-code" in line
    assert not (tmp_path / "out").exists()


def test_exporting_code_needs_permission(tmp_path, cli, monkeypatch):
    (tmp_path / "factories.py").write_text("raise SystemExit('it ran')\n")
    monkeypatch.chdir(tmp_path)
    line = error_line(cli("export", "factories:build", "-o", "x.onnx", code=2))
    assert "factories:build" in line
    assert "--allow-code" in line
