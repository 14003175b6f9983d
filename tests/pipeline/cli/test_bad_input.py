"""Bad input: exit code 2, one clear line, nothing left behind, inputs as they were."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import small_models as small
from cli_runner import Cli, error_line, start

RECIPE = {
    "name": "tiny",
    "source": {"model": "model.onnx"},
    "calibration": {"kind": "npz", "path": "data.npz"},
    "validation": {"kind": "npz", "path": "data.npz"},
    "benchmark": None,
}
COMPRESS = ("compress", "model.onnx", "-o", "out.onnx")
RUN = ("run", "recipe.yaml", "-o", "bundle")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The current folder, with everything that a command may need."""
    small.save(small.perceptron(), tmp_path / "model.onnx")
    small.save_rows(tmp_path / "data.npz")
    (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(capsys, monkeypatch, files, tmp_path_factory):
    """Run a command that must fail in one clear line and leave everything as it was."""
    monkeypatch.setenv("COMPRESS_ONNX_CACHE", str(tmp_path_factory.mktemp("cache")))
    cli = Cli(capsys, monkeypatch)

    def check(*arguments, code=2):
        before, names = small.listing(files), sorted(files.rglob("*"))
        line = error_line(cli(*arguments, code=code))
        assert small.listing(files) == before
        assert sorted(files.rglob("*")) == names
        return line

    return check


def every_command(model):
    return [
        ("analyze", model),
        ("compress", model, "-o", "out.onnx"),
        ("compress", model, "--dry-run", "--save-plan", "plan.json"),
        ("validate", "model.onnx", model),
        ("validate", model, "model.onnx", "--inputs", "data.npz"),
        ("bench", model, "model.onnx"),
        ("bench", "model.onnx", model),
    ]


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (("compress", "model.onnx", "--rnak", "4"), "--rnak"),
        (("compress", "model.onnx", "--rank", "four"), "'--rank'"),
        (("compress", "model.onnx", "--rank"), "--rank"),
        (("bench", "model.onnx", "model.onnx", "--provider", "tpu"), "'auto', 'cpu', 'cuda'"),
        (("bench", "model.onnx"), "candidate"),
        (("shrink", "model.onnx"), "shrink"),
        (("compress", "model.onnx", "other.onnx"), "other.onnx"),
    ],
    ids=str,
)
def test_a_wrong_command_line_is_one_line_that_names_the_help(refused, command, named):
    line = refused(*command)
    assert named in line
    assert "--help" in line


@pytest.mark.parametrize("command", every_command("bad.onnx"), ids=" ".join)
@pytest.mark.parametrize(
    "content", [None, b"", b"not a model", "truncated", "folder"], ids=lambda c: str(c)[:12]
)
def test_a_bad_model_file_is_named(refused, files, command, content):
    if content == "folder":
        Path("bad.onnx").mkdir()
    elif content == "truncated":
        Path("bad.onnx").write_bytes(Path("model.onnx").read_bytes()[:-1000])
    elif content is not None:
        Path("bad.onnx").write_bytes(content)
    assert "bad.onnx" in refused(*command)


def test_a_recipe_with_a_bad_model_leaves_no_bundle(refused, files):
    Path("model.onnx").write_bytes(Path("model.onnx").read_bytes()[:5000])
    assert "model.onnx" in refused(*RUN)


def rows(count=4, features=small.FEATURES, dtype=np.float32):
    return np.ones((count, features), dtype)


NAN = rows()
NAN[2, 3] = np.nan
BAD_DATA = {
    "wrong name": ({"pixels": rows()}, "'pixels' is no input of the model"),
    "one too many": ({"x": rows(), "z": rows()}, "'z' is no input of the model"),
    "too wide": ({"x": rows(features=50)}, "axis 1 is 50 instead of 48"),
    "flat": ({"x": np.ones(4, np.float32)}, "has 1 axes instead of 2"),
    "scalar": ({"x": np.float32(1)}, "no samples"),
    "double": ({"x": rows(dtype=np.float64)}, "convert the array to float32"),
    "integers": ({"x": rows(dtype=np.int64)}, "convert the array to float32"),
    "NaN": ({"x": NAN}, "'x' contains NaN"),
    "infinite": ({"x": rows() * np.inf}, "'x' contains NaN or infinite"),
    "no samples": ({"x": rows(count=0)}, "there are no samples"),
    "no arrays": ({}, "no input array"),
    "ragged": ({"x": rows(4), "z": rows(5)}, "differ in their number of samples"),
    "objects": ({"x": np.array([[1], [1, 2]], dtype=object)}, "pickle"),
    "text": ({"x": np.array(["a", "b"])}, "not numbers"),
}


@pytest.mark.parametrize("case", BAD_DATA)
@pytest.mark.parametrize(
    "command",
    [
        (*COMPRESS, "-c", "bad.npz"),
        ("analyze", "model.onnx", "-c", "bad.npz"),
        ("validate", "model.onnx", "model.onnx", "--inputs", "bad.npz"),
    ],
    ids=lambda command: command[0],
)
def test_data_that_does_not_fit_is_explained(refused, files, command, case):
    arrays, message = BAD_DATA[case]
    np.savez("bad.npz", **arrays)
    line = refused(*command)
    assert "bad.npz" in line
    assert message in line


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 no archive", "truncated", "array"])
def test_a_bad_data_file_is_named(refused, files, content):
    if content == "truncated":
        Path("bad.npz").write_bytes(Path("data.npz").read_bytes()[:-100])
    elif content == "array":
        with Path("bad.npz").open("wb") as stream:
            np.save(stream, rows())
    elif content is not None:
        Path("bad.npz").write_bytes(content)
    for command in ((*COMPRESS, "-c", "bad.npz"), ("bench", *["model.onnx"] * 2, "--inputs")):
        line = refused(*command, *(["bad.npz"] if command[-1] == "--inputs" else []))
        assert "bad.npz" in line


@pytest.mark.parametrize("inputs", [{"pixels": rows()}, {"x": rows()[:, :3]}, {"x": rows()[0]}])
def test_bench_refuses_rows_that_do_not_fit(refused, files, inputs):
    np.savez("bad.npz", **inputs)
    bench = ("bench", "model.onnx", "model.onnx", "--provider", "cpu", "--iterations", "5")
    refused(*bench, "--inputs", "bad.npz")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--method", "magic"], "magic"),
        (["--method", "asvd"], "calibration data"),
        (["--method", "svd:stages=3"], "stages"),
        (["--method", "svdlora:stages=0"], "stages"),
        (["--method", "svdlora:layout=diagonal"], "layout"),
        (["--method", "svdlora:stages"], "KEY=VALUE"),
        (["--allocation", "magic"], "magic"),
        (["--params", "0"], "params"),
        (["--params", "nan"], "params"),
        (["--params", "1.5"], "params"),
        (["--params", "0.5", "--rank", "4"], "rank"),
        (["--bytes", "1.5"], "bytes is a share between 0 and 1"),
        (["--flops", "0"], "flops"),
        (["--latency", "nan"], "latency"),
        (["--bytes", "0.5", "--latency", "0.5"], "bytes and latency exclude each other"),
        (["--flops", "0.5", "--rank", "4"], "flops and rank exclude each other"),
        (["--rank", "0"], "rank"),
        (["--group", "magic"], "group"),
        (["--include", "decoder.*"], "'decoder.*' matches no linear site"),
        (["--exclude", "decoder.*"], "'decoder.*' matches no linear site"),
        (["--plan", "missing.json"], "missing.json"),
        (["--plan", "recipe.yaml"], "recipe.yaml is not a compression plan"),
        (["--plan", "data.npz"], "data.npz is not a compression plan"),
        (["-c", "data.npz", "--mask", "padding"], "padding"),
    ],
    ids=" ".join,
)
def test_an_option_that_makes_no_sense_is_named(refused, options, named):
    assert named in refused(*COMPRESS, *options)


@pytest.mark.parametrize("gate", ["cosine", "cosine>0.9", "cosine>=high", "cosine>=nan", ""])
def test_a_gate_that_cannot_be_read_is_named(refused, gate):
    assert f"gate {gate!r}" in refused("validate", "model.onnx", "model.onnx", "--gate", gate)


def test_a_plan_for_another_model_is_refused(refused, files):
    small.save(small.encoder(), files / "other.onnx")
    start("compress", "model.onnx", "--dry-run", "--save-plan", "plan.json")
    compress = ("compress", "other.onnx", "-o", "out.onnx", "--plan", "plan.json")
    assert "'encoder.fc1', which the model lacks" in refused(*compress)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"compresion": {}}, "compresion: unknown key"),
        ({"source": {"model": "model.onnx", "opst": 23}}, "source.opst: unknown key"),
        ({"compression": {"method": {"name": "svd", "stages": 3}}}, "compression.method.stages"),
        ({"compression": {"method": {"name": "magic"}}}, "magic"),
        ({"compression": {"params": -1}}, "compression.params"),
        ({"compression": {"select": {"include": ["decoder.*"]}}}, "decoder.*"),
        ({"gates": [{"quantity": "cosine", "min": 0, "max": 1}]}, "gates.0"),
        ({"calibration": {"kind": "npy", "path": "data.npz"}}, "calibration"),
        ({"calibration": {"kind": "npz", "path": "missing.npz"}}, "missing.npz"),
        ({"name": "../escape"}, "name"),
        ({"source": {"model": "missing.onnx"}}, "missing.onnx"),
        ({"source": {}}, "source.model: this key is required"),
        ({"mask": "padding"}, "padding"),
        ({"metric": {"kind": "accuracy"}}, "label"),
        ({"validation": None, "metric": {"kind": "accuracy"}}, "validation"),
        ({"metric": {"kind": "embedding", "output": "z"}}, "z"),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_a_wrong_recipe_names_the_key(refused, files, change, named):
    Path("recipe.yaml").write_text(json.dumps(RECIPE | change))
    assert named in refused(*RUN)


@pytest.mark.parametrize("text", [None, "", "- a\n- b", "name: [", "name: !!python/object:os.x"])
def test_a_file_that_is_no_recipe_is_named(refused, files, text):
    if text is not None:
        Path("bad.yaml").write_text(text)
    assert "bad.yaml" in refused("run", "bad.yaml", "-o", "bundle")


def test_a_binary_file_is_no_recipe(refused):
    assert "data.npz" in refused("run", "data.npz", "-o", "bundle")


@pytest.mark.parametrize(
    "command",
    [
        ("compress", "model.onnx", "-o", "data.npz/out.onnx"),
        ("compress", "model.onnx", "-o", "folder"),
        ("compress", "model.onnx", "--dry-run", "--save-plan", "data.npz/plan.json"),
        ("analyze", "model.onnx", "--json", "data.npz/a.json"),
        ("run", "recipe.yaml", "-o", "data.npz/bundle"),
        ("run", "recipe.yaml", "-o", "data.npz"),
        ("run", "recipe.yaml", "-o", "folder"),
        ("run", "recipe.yaml", "-o", "."),
    ],
    ids=" ".join,
)
def test_an_output_that_cannot_be_written_is_named(refused, files, command):
    Path("folder").mkdir()
    Path("folder/mine.txt").write_text("keep me")
    assert command[-1] in refused(*command)


def test_bench_says_so_when_its_json_cannot_be_written(refused):
    bench = ("bench", *["model.onnx"] * 2, "--provider", "cpu", "--iterations", "5", "--loads", "0")
    assert "data.npz/b.json" in refused(*bench, "--json", "data.npz/b.json")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_is_no_output(refused):
    assert "/dev/full" in refused("compress", "model.onnx", "-o", "/dev/full")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(refused, files):
    (files / "locked").mkdir(mode=0o500)
    assert "locked" in refused("compress", "model.onnx", "-o", "locked/out.onnx")


@pytest.mark.skipif("CUDAExecutionProvider" not in ort.get_available_providers(), reason="CPU ORT")
@pytest.mark.parametrize("command", ["bench", "validate"])
def test_cuda_where_there_is_none_is_refused(refused, monkeypatch, command):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    line = refused(command, "model.onnx", "model.onnx", "--provider", "cuda")
    assert "CUDAExecutionProvider" in line
    assert "--provider cpu" in line


@pytest.mark.skipif(
    "OpenVINOExecutionProvider" in ort.get_available_providers(), reason="OpenVINO is here"
)
@pytest.mark.parametrize("command", ["bench", "validate"])
def test_openvino_where_there_is_none_is_refused(refused, command):
    line = refused(command, "model.onnx", "model.onnx", "--provider", "openvino")
    assert "install onnxruntime-openvino" in line


def test_models_that_are_no_versions_of_one_are_refused(refused, files):
    small.save(small.encoder(), files / "other.onnx")
    assert "inputs differ" in refused("validate", "model.onnx", "other.onnx")
    assert "other.onnx takes the inputs" in refused("bench", "model.onnx", "other.onnx")


def test_a_graph_that_onnx_runtime_rejects_is_refused(refused, files):
    model = onnx.load("model.onnx")
    model.graph.node[2].op_type = "Rellu"
    onnx.save(model, "model.onnx")
    assert "Rellu" in refused(*COMPRESS, "-c", "data.npz")
    assert "Rellu" in refused("validate", "model.onnx", "model.onnx")


@pytest.mark.parametrize("folder", [".", "missing", "data.npz"])
def test_a_folder_without_a_report_is_refused(refused, folder):
    assert "report.json" in refused("report", folder)


def test_export_refuses_what_is_onnx_already_and_what_is_not_there(refused):
    assert "nothing to export" in refused("export", "model.onnx", "-o", "out.onnx")
    assert "missing" in refused("export", "./missing/folder", "-o", "out.onnx")
    assert "no_such_module" in refused("export", "no_such_module:build", "-o", "out.onnx")
