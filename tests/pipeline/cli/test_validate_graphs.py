"""``validate`` for any two graphs of one model: tolerances, sizes, where they part, the runtime."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models as small
from cli_runner import error_line
from onnx import numpy_helper

COMPARE = ("validate", "model.onnx")


@pytest.fixture
def damaged(files):
    """``damaged.onnx``: a bias of the second layer is lost."""
    model = small.perceptron()
    (add,) = [node for node in model.graph.node if "b2" in node.input]
    for node in model.graph.node:
        node.input[:] = ["m2" if name == add.output[0] else name for name in node.input]
    model.graph.node.remove(add)
    return small.save(model, files / "damaged.onnx")


@pytest.fixture
def rounded(files):
    """``rounded.onnx``: the head's weights, to a thousandth."""
    model = small.perceptron()
    for tensor in model.graph.initializer:
        if tensor.name == "w3":
            array = np.round(numpy_helper.to_array(tensor), 3)
            tensor.CopyFrom(numpy_helper.from_array(array, "w3"))
    return small.save(model, files / "rounded.onnx")


def test_a_tolerance_that_holds(cli, rounded):
    text = cli(*COMPARE, "rounded.onnx", "--atol", "0.1").out
    assert "tolerance of y (cpu): passed" in text
    assert "divergence" not in text


def test_a_tolerance_that_is_exceeded_is_explained(cli, rounded):
    text = cli(*COMPARE, "rounded.onnx", "--rtol", "1e-6", "--json", "r.json", code=1).out
    assert "outside: FAILED" in text
    assert "first divergence on the way to y: y of Gemm /head/Gemm" in text
    assert "rounded" in text
    inside = json.loads(Path("r.json").read_text())["inside"]
    assert inside["divergence"]["candidate"]["operator"] == "Gemm"
    assert len(inside["depth"]) == 6


def test_a_lost_bias_is_named(cli, damaged):
    text = cli(*COMPARE, "damaged.onnx", "--atol", "1e-4", code=1).out
    assert "a lost bias ('b2')" in text
    assert "explain" not in text
    quiet = cli(*COMPARE, "damaged.onnx", "--atol", "1e-4", "--no-explain", code=1).out
    assert "bias" not in quiet
    # Without a tolerance nothing fails; the cause is told to whoever asks.
    assert "a lost bias" in cli(*COMPARE, "damaged.onnx", "--explain").out


def test_a_graph_of_one_batch_size_is_explained_too(cli, damaged, files):
    for name in ("model.onnx", "damaged.onnx"):
        model = onnx.load(name)
        for end in (model.graph.input[0], model.graph.output[0]):
            end.type.tensor_type.shape.dim[0].dim_value = 4
        small.save(model, files / f"fixed-{name}")
    text = cli("validate", "fixed-model.onnx", "fixed-damaged.onnx", "--atol", "1e-4", code=1).out
    assert "a lost bias" in text


def test_tolerances_by_output(cli, rounded):
    cli(*COMPARE, "rounded.onnx", "--atol", "y:0.1", "--rtol", "0")
    cli(*COMPARE, "rounded.onnx", "--atol", "0.1", "--atol", "y:1e-9", code=1)
    assert "no output 'z'" in error_line(cli(*COMPARE, "rounded.onnx", "--atol", "z:0.1", code=2))
    for bad in ("x", "-1", "inf", "y:"):
        assert "such as 1e-4" in error_line(cli(*COMPARE, "rounded.onnx", f"--atol={bad}", code=2))


def test_several_sizes(cli, files):
    small.save(small.encoder(), files / "encoder.onnx")
    compare = ("validate", "encoder.onnx", "encoder.onnx", "--atol", "1e-6")
    text = cli(*compare, "--size", "2x8", "--size", "1x3").out
    assert "2 samples of made-up inputs, 2x8" in text
    assert "tolerance of hidden (1x3): passed" in text
    assert "relative_l2" in text
    for bad in ("8", "0x3", "axb", "2x"):
        assert "such as 8x128" in error_line(cli(*compare, "--size", bad, code=2))
    both = cli(*compare, "--size", "2x8", "--inputs", "data.npz", code=2)
    assert "--size" in error_line(both)


def test_several_levels_of_optimization(cli, rounded):
    levels = ("--optimization", "all", "--optimization", "off", "--optimization", "off")
    gates = ("--gate", "relative_l2.off<=0.5", "--gate", "relative_l2.worst<=0.5")
    text = cli(*COMPARE, "rounded.onnx", *levels, *gates, "--json", "r.json").out
    assert "relative_l2.off <= 0.5" in text
    found = json.loads(Path("r.json").read_text())["validation"]
    assert found["domains"].keys() == {"off"}
    line = error_line(cli(*COMPARE, "rounded.onnx", "--gate", "relative_l2.off<=0.5", code=2))
    assert "relative_l2.off" in line


def test_a_graph_against_itself(cli, files):
    text = cli(*COMPARE, "model.onnx", "--runtime", "--json", "r.json").out
    assert "against itself" in text
    found = json.loads(Path("r.json").read_text())["runtime"]
    assert found.keys() == {"reference", "candidate"}
    assert found["candidate"]["runs"] == 0
    assert found["candidate"]["evaluator"] < 1e-5
    assert found["candidate"]["levels"].keys() == {"basic", "extended", "all"}


def test_the_page(cli, damaged, files):
    cli(*COMPARE, "damaged.onnx", "--html", "page.html")
    page = Path("page.html").read_text()
    assert "a lost bias" in page
    assert "Errors along the depth" in page
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)  # nothing is fetched
    cli(*COMPARE, "damaged.onnx", "--html", "page.html")  # ours is replaced
    Path("other.html").write_text("somebody's")
    assert "other.html" in error_line(cli(*COMPARE, "damaged.onnx", "--html", "other.html", code=2))


def test_names_of_a_stranger_are_text(cli, files):
    model = small.perceptron()
    model.graph.node[0].name = "<script>alert(1)</script>"
    small.save(model, files / "named.onnx")
    cli(*COMPARE, "named.onnx", "--html", "page.html")
    assert "<script>alert" not in Path("page.html").read_text()
    onnx.load("named.onnx")
