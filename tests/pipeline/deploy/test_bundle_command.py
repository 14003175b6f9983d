"""The command ``bundle``, and ``deploy`` in a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import hf_models
import pytest
import small_models as small
from cli_runner import Cli, error_line
from packages import encoder_package, perceptron_package

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.pipeline.files.bundle import verify_manifest
from compress_onnx.pipeline.recipe import Recipe, read_recipe
from compress_onnx.pipeline.recipes.run import run_recipe

pytest.importorskip("cyclonedx", reason="needs the deploy extra")
pytest.importorskip("tritonclient.grpc", reason="needs the deploy extra")

RECIPE = {
    "name": "tiny",
    "source": {"model": "model.onnx"},
    "calibration": {"kind": "npz", "path": "data.npz"},
    "validation": {"kind": "npz", "path": "data.npz"},
    "compression": {"params": 0.5},
    "benchmark": None,
}


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path) -> Cli:
    monkeypatch.chdir(tmp_path)
    return Cli(capsys, monkeypatch)


def test_one_target_goes_to_the_folder_itself(tmp_path, cli):
    encoder_package(tmp_path / "tiny")
    printed = cli("bundle", "tiny", "--target", "optimum", "-o", "out")
    assert (tmp_path / "out" / "model.onnx").is_file()
    assert 'from_pretrained("out")' in printed.out


def test_several_targets_have_a_folder_each(tmp_path, cli):
    encoder_package(tmp_path / "tiny")
    printed = cli("bundle", "tiny", "-t", "triton", "-t", "vespa", "-o", "out", "--name", "mine")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["triton", "vespa"]
    assert (tmp_path / "out/triton/repository/mine/config.pbtxt").is_file()
    assert "component.xml" in printed.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("tiny", "-t", "tritn", "-o", "out"), "no target 'tritn'"),
        (("nowhere", "-t", "ort", "-o", "out"), "has no model.onnx"),
        (("tiny", "-t", "ort", "-o", "tiny"), "tiny"),
        (("tiny", "-t", "ort", "-o", "out", "--name", "a/b"), "--name"),
        (("tiny", "-t", "ort", "-o", "out", "--original", "none.onnx"), "none.onnx"),
        (("tiny", "-t", "tei", "-o", "out"), "tokenizer.json"),
    ],
)
def test_bad_requests(tmp_path, cli, arguments, told):
    perceptron_package(tmp_path / "tiny")
    before = small.listing(tmp_path)
    assert told in error_line(cli("bundle", *arguments, code=2))
    assert small.listing(tmp_path) == before


def folder_of(tmp_path: Path, **changes: object) -> Path:
    small.save(small.perceptron(), tmp_path / "model.onnx")
    small.save_rows(tmp_path / "data.npz")
    (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE | changes))
    return tmp_path


def run(folder: Path) -> None:
    run_recipe(read_recipe(folder / "recipe.yaml"), folder / "bundle", base_dir=folder)


def test_a_recipe_deploys_both_versions(tmp_path):
    folder = folder_of(tmp_path, deploy=["triton", "ort"])
    run(folder)
    verify_manifest(folder / "bundle")
    deployed = folder / "bundle" / "deploy"
    repository = deployed / "triton" / "repository" / "tiny"
    assert (repository / "1/model.onnx").read_bytes() == (folder / "model.onnx").read_bytes()
    made = (folder / "bundle" / "model.onnx").read_bytes()
    assert (repository / "2/model.onnx").read_bytes() == made
    assert (deployed / "ort" / "provenance" / "plan.json").is_file()
    for target in ("triton", "ort"):
        verify_manifest(deployed / target)
    run(folder)  # replaced as a whole: it is still a bundle of ours


@pytest.mark.slow
def test_the_card_and_the_licence_of_the_source_go_all_the_way(tmp_path):
    pytest.importorskip("transformers")
    source = hf_models.save(hf_models.bert(), tmp_path / "source")
    (source / "README.md").write_text("---\nlicense: mit\n---\n# The original\n")
    (source / "LICENSE").write_text("Their text\n")
    recipe = {
        "name": "tiny",
        "source": {"model": "source"},
        "compression": {"method": {"name": "svd"}, "params": 0.5, "rank_multiple": 1},
        "deploy": ["optimum"],
        "benchmark": None,
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    run(tmp_path)
    bundle, out = tmp_path / "bundle", tmp_path / "bundle" / "deploy" / "optimum"
    for folder in (bundle, out):
        for theirs, ours in (("README.md", "README-original.md"), ("LICENSE", "LICENSE")):
            assert (folder / ours).read_bytes() == (source / theirs).read_bytes()
    # That of the original is not that of the compressed model.
    assert not (bundle / "README.md").exists()
    assert "license: mit" in (out / "README.md").read_text()
    verify_manifest(bundle)


def test_a_target_that_does_not_fit_is_told_before_anything_is_learned(tmp_path):
    folder = folder_of(tmp_path, deploy=["vespa"], calibration={"kind": "npz", "path": "none.npz"})
    with pytest.raises(RequestError, match="pooled"):
        run(folder)
    assert not (folder / "bundle").exists()


def test_deploy_in_a_recipe(tmp_path):
    with pytest.raises(RequestError, match="deploy"):
        read_recipe(folder_of(tmp_path, deploy=["tritn"]) / "recipe.yaml")
    with pytest.raises(ValueError, match="one graph"):
        Recipe.model_validate(
            RECIPE | {"deploy": ["ort"], "metric": {"kind": "translation"}},
        )
