"""No command replaces what it reads, nor, without being told to, what others wrote."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import small_models as small
from cli_runner import Cli, error_line

RECIPE = {
    "name": "tiny",
    "source": {"model": "model.onnx"},
    "calibration": {"kind": "npz", "path": "data.npz"},
    "validation": {"kind": "npz", "path": "data.npz"},
    "benchmark": None,
}
BENCH = ("bench", *["model.onnx"] * 2, "--provider", "cpu", "--iterations", "5", "--loads", "0")
SMALL = ("compress", "model.onnx", "-o")


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path, tmp_path_factory):
    """The command line in a folder with everything that a command may need."""
    small.save(small.perceptron(), tmp_path / "model.onnx")
    small.save_external(small.perceptron(), tmp_path / "large.onnx")
    small.save_rows(tmp_path / "data.npz")
    (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE))
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPRESS_ONNX_CACHE", str(tmp_path_factory.mktemp("cache")))
    return Cli(capsys, monkeypatch)


@pytest.fixture
def refused(cli, tmp_path):
    """Run a command that must be refused in one line, and leave everything as it was."""

    def check(*arguments, force=True):
        before, names = small.listing(tmp_path), sorted(tmp_path.rglob("*"))
        line = error_line(cli(*arguments, *(["--force"] if force else []), code=2))
        assert small.listing(tmp_path) == before
        assert sorted(tmp_path.rglob("*")) == names
        return line

    return check


@pytest.mark.parametrize("spelling", ["model.onnx", "./deep/../model.onnx", "absolute"])
def test_a_model_is_not_replaced_by_its_own_compression(refused, tmp_path, spelling):
    output = tmp_path / "model.onnx" if spelling == "absolute" else spelling
    assert "is an input" in refused(*SMALL, output)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_nor_through_a_link(refused, tmp_path, link):
    link(tmp_path / "model.onnx", tmp_path / "link.onnx")
    assert "is an input" in refused(*SMALL, "link.onnx")
    assert "is an input" in refused("compress", "link.onnx", "-o", "model.onnx")


@pytest.mark.parametrize(
    "command",
    [
        (*SMALL, "data.npz", "-c", "data.npz"),
        (*SMALL, "out.onnx", "--save-plan", "model.onnx"),
        ("compress", "model.onnx", "--dry-run", "--save-plan", "model.onnx"),
        ("compress", "model.onnx", "--dry-run", "-c", "data.npz", "--save-plan", "data.npz"),
        ("compress", "large.onnx", "-o", "large.onnx.data"),
        ("analyze", "model.onnx", "--json", "model.onnx"),
        ("analyze", "large.onnx", "--json", "large.onnx.data"),
        ("analyze", "model.onnx", "-c", "data.npz", "--json", "data.npz"),
        ("analyze", "recipe.yaml", "--json", "recipe.yaml"),
        ("analyze", "recipe.yaml", "--json", "data.npz"),
        (*BENCH, "--json", "model.onnx"),
        (*BENCH, "--inputs", "data.npz", "--json", "data.npz"),
        ("export", "model.onnx", "-o", "model.onnx"),
        ("run", "recipe.yaml", "-o", "."),
    ],
    ids=" ".join,
)
def test_no_output_is_an_input_even_by_force(refused, command):
    refused(*command)


def test_a_bundle_is_not_replaced_while_it_is_read(refused, cli):
    cli("run", "recipe.yaml", "-o", "bundle")
    Path("again.yaml").write_text(json.dumps(RECIPE | {"source": {"model": "bundle/model.onnx"}}))
    assert "holds the input bundle/model.onnx" in refused("run", "again.yaml", "-o", "bundle")


@pytest.mark.parametrize("second", ["out.onnx", "./deep/../out.onnx"])
@pytest.mark.parametrize("there", [False, True])
def test_two_outputs_are_not_one_file(refused, cli, second, there):
    if there:
        cli(*SMALL, "out.onnx")
    assert "one place" in refused(*SMALL, "out.onnx", "--save-plan", second)


def test_what_somebody_else_wrote_stays_without_force(refused, cli):
    small.save(small.encoder(), Path("other.onnx"))
    Path("notes.json").write_text('{"sites": "mine"}')
    Path("deep/notes.txt").write_text("mine")
    for command in (
        (*SMALL, "other.onnx"),
        ("compress", "model.onnx", "--dry-run", "--save-plan", "notes.json"),
        ("analyze", "model.onnx", "--json", "notes.json"),
        ("analyze", "model.onnx", "-c", "data.npz", "-o", "deep"),
        ("sweep", "recipe.yaml", "-o", "deep"),
        ("run", "recipe.yaml", "-o", "deep"),
        (*BENCH, "--json", "notes.json"),
    ):
        assert "--force" in refused(*command, force=False)
    cli(*SMALL, "other.onnx", "--save-plan", "notes.json", "--force")
    cli("run", "recipe.yaml", "-o", "deep", "--force")
    assert not Path("deep/notes.txt").exists()


def test_earlier_outputs_are_replaced_as_ever(cli):
    Path("empty.onnx").touch()
    cli(*SMALL, "empty.onnx")
    for _ in range(2):
        cli(*SMALL, "out.onnx", "--save-plan", "plan.json")
        cli("analyze", "model.onnx", "--json", "spectra.json")
        cli("analyze", "model.onnx", "-c", "data.npz", "-o", "analysis")
        cli("sweep", "recipe.yaml", "-o", "sweep", "--no-benchmark")
        cli("run", "recipe.yaml", "-o", "bundle")
        cli(*BENCH, "--json", "bench.json")


@pytest.mark.parametrize("plan", [(), ("--save-plan", "plan.json")])
def test_a_dry_run_writes_nothing_but_the_plan(cli, tmp_path, plan):
    before = small.listing(tmp_path)
    cli(*SMALL, "out.onnx", "--dry-run", "-c", "data.npz", *plan)
    after = small.listing(tmp_path)
    assert after.keys() - before.keys() == set(plan[1:])
    assert {name: after[name] for name in before} == before
