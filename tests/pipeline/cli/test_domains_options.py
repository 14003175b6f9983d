"""Further sets of samples on the command line: --domain tells of them, --broader calibrates."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import small_models as small
from cli_runner import error_line
from onnx import numpy_helper

from compress_onnx.pipeline import api

SMALL = ("compress", "model.onnx", "-c", "data.npz", "-o", "small.onnx", "--no-benchmark")
VALIDATE = ("validate", "model.onnx", "small.onnx", "--inputs", "data.npz")


@pytest.fixture
def sets(files):
    """Two more files of rows, one of them of a very different size."""
    small.save_rows(Path("near.npz"), count=40, seed=5)
    small.save_rows(Path("far.npz"), count=40, seed=6)
    return files


def row_of(text: str, figure: str) -> list[str]:
    (row,) = (line.split() for line in text.splitlines() if line.split()[:1] == [figure])
    return row


def damaged(path: Path) -> None:
    """A weight of the model in zeros."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("w2") or len(tensor.dims) == 2:
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(0 * array, tensor.name))
            break
    onnx.save(model, path)


def test_validate_tells_domains_and_holds_gates_against_them(cli, sets):
    cli(*SMALL)
    domains = ("--domain", "near=near.npz", "--domain", "far=far.npz")
    gates = ("--gate", "relative_l2.far<=1", "--gate", "relative_l2.worst<=1")
    text = cli(*VALIDATE, *domains, *gates, "--json", "found.json").out
    row = row_of(text, "relative_l2")
    assert row[4] == max(row[1:4], key=float)
    found = json.loads(Path("found.json").read_text())["validation"]
    assert list(found["domains"]) == ["near", "far"]
    damaged(Path("small.onnx"))
    cli(*VALIDATE, *domains, "--gate", "relative_l2.far<=0.5", code=1)
    cli(*VALIDATE, *domains, "--gate", "relative_l2.worst<=0.5", code=1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--domain", "near"), "cannot read 'near': write NAME=FILE.npz"),
        (("--domain", "=near.npz"), "write NAME=FILE.npz"),
        (("--domain", "a=near.npz", "--domain", "a=far.npz"), "'a' is given twice"),
        (("--domain", "worst=near.npz"), "no domain can be called 'worst'"),
        (("--domain", "cpu=near.npz"), "no domain can be called 'cpu'"),
        (("--domain", "a=missing.npz"), "missing.npz"),
        (("--gate", "relative_l2.near<=1"), "relative_l2.near"),
    ],
)
def test_bad_domains_are_one_line(cli, sets, options, told):
    cli(*SMALL)
    assert told in error_line(cli(*VALIDATE, *options, code=2))


def test_domains_need_a_main_set(cli, sets):
    cli(*SMALL)
    captured = cli("validate", "model.onnx", "small.onnx", "--domain", "a=near.npz", code=2)
    assert "give --inputs" in error_line(captured)


def test_compress_pulls_towards_broader_data(cli, sets):
    broader = ("--broader", "near=near.npz", "--broader", "far=far.npz")
    cli(*SMALL, *broader, "--shrinkage", "broader:auto", "--save-plan", "plan.json")
    plan = json.loads(Path("plan.json").read_text())
    assert plan["shrinkage"]["towards"] == "broader"
    assert any("leaving out one of near, far" in note for note in plan["notes"])
    written = Path("small.onnx").read_bytes()
    cli(*SMALL, *broader, "--plan", "plan.json")
    assert Path("small.onnx").read_bytes() == written


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--broader", "near=near.npz"), "give --shrinkage broader:auto"),
        (("--shrinkage", "broader:0.5"), "give broader sets, or shrink towards identity"),
        (("--shrinkage", "broader:2"), "shrinkage"),
        (("--shrinkage", "sideways:0.5"), "shrinkage"),
    ],
)
def test_bad_shrinkage_is_one_line(cli, sets, options, told):
    assert told in error_line(cli(*SMALL, *options, code=2))


def test_broader_data_stand_beside_calibration_data(cli, sets):
    command = ("compress", "model.onnx", "-o", "small.onnx", "--broader", "near=near.npz")
    captured = cli(*command, "--shrinkage", "broader:0.5", code=2)
    assert "give --calibration" in error_line(captured)


def test_sweep_has_a_column_for_each_domain_and_the_worst(cli, sets):
    recipe = {
        "name": "tiny",
        "source": {"model": "model.onnx"},
        "calibration": {"kind": "npz", "path": "data.npz"},
        "validation": {"kind": "npz", "path": "data.npz"},
        "domains": {"near": {"kind": "npz", "path": "near.npz"}},
    }
    Path("recipe.yaml").write_text(json.dumps(recipe))
    options = ("--no-benchmark", "-p", "0.7", "-p", "0.4", "--domain", "far=far.npz")
    lines = cli("sweep", "recipe.yaml", *options).out.splitlines()
    header, _, *rows = ([cell.strip() for cell in line.split("|")] for line in lines if "|" in line)
    columns = [f"min_output_cosine.{name}" for name in ("near", "far", "worst")]
    assert [name for name in header if name.startswith("min_output")] == columns
    first = header.index(columns[0])
    own = header.index("cosine")
    assert len(rows) == 2
    for row in rows:
        cosines = [float(row[at]) for at in (own, first, first + 1)]
        assert float(row[first + 2]) == min(cosines)


def test_optimize_tells_finalists_on_domains(cli, sets):
    options = ("--max-drop", "0.3", "--time", "5s", "--iterations", "5", "--length", "1")
    shrinkage = ("--shrinkage", "broader:0.5", "--broader", "near=near.npz")
    text = cli(
        "optimize", "model.onnx", "-c", "data.npz", "-o", "best.onnx", "--report", "found.json",
        *options, *shrinkage, "--domain", "far=far.npz",
    ).out  # fmt: skip
    assert "far" in text
    found = json.loads(Path("found.json").read_text())
    told = [trial for trial in found["trials"] if trial["reported"] is not None]
    assert told
    assert all(list(trial["domains"]) == ["far"] for trial in told)
    assert "the half that chose nothing" in found["depth"]["origin"]
    assert found["depth"]["values"][-1]["tensor"] == "y"


def test_the_api_takes_the_same(sets):
    options = {"params": 0.5, "shrinkage": "broader:0.5"}
    small_model = api.compress(
        "model.onnx", "small.onnx", "data.npz", broader={"near": "near.npz"}, **options
    )
    assert small_model.plan.shrinkage is not None
    report = api.validate("model.onnx", "small.onnx", "data.npz", domains={"far": "far.npz"})
    assert report.worst["relative_l2"] == max(
        api.validate("model.onnx", "small.onnx", each).outputs[0].relative_l2
        for each in ("data.npz", "far.npz")
    )
