"""``doctor``, ``init``, what the root's options say, and what mistyped words get for an answer."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnx
import pytest
import small_models as small
from cli_runner import error_line, parsed_options, python, start

from compress_onnx.pipeline.cli import dispatch, doctor
from compress_onnx.pipeline.cli.parameters import registered
from compress_onnx.pipeline.recipe import read_recipe
from compress_onnx.pipeline.runtime import diagnosis


def test_doctor_tells_what_works_and_what_to_install(files, cli, monkeypatch):
    real = diagnosis.metadata.version

    def version(package):
        if package == "matplotlib":
            raise diagnosis.metadata.PackageNotFoundError(package)
        return "0.0.1" if package == "distributed" else real(package)

    monkeypatch.setattr(diagnosis.metadata, "version", version)
    text = cli("doctor", "--json", "doctor.json").out
    assert re.search(r"^provider cpu +works$", text, re.MULTILINE)
    assert 'missing: matplotlib (pip install "compress-onnx[pictures]")' in text
    found = json.loads(Path("doctor.json").read_text())
    assert found["providers"]["cpu"] is None
    assert found["extras"]["pictures"]["missing"] == ["matplotlib"]
    assert "distributed is 0.0.1" in found["extras"]["dask"]["missing"][0]
    assert found["extras"]["recipes"]["missing"] == []
    assert not {"cpu", "gpu", "openvino"} & found["extras"].keys()


def test_where_no_provider_works_doctor_fails(files, cli, monkeypatch):
    everything = diagnosis.diagnosis()
    nothing = everything.model_copy(update={"providers": {"cpu": "no such thing here"}})
    monkeypatch.setattr(doctor, "diagnosis", lambda: nothing)
    assert "no such thing here" in cli("doctor", code=1).out


def test_init_writes_a_recipe_that_runs(files, cli):
    small.save_rows(files / "other.npz", 60, seed=5)
    cli("init", "model.onnx", "-c", "data.npz", "--validation", "other.npz")
    recipe = read_recipe(files / "model.yaml")
    assert recipe.compression.optimize is not None
    text = (files / "model.yaml").read_text()
    assert re.match(r"# model\.onnx: \d+ linear layers with [\d,]+ parameters; ", text)
    assert "numpy.savez" not in text
    # Shorter, so that the test is: the form is found by a share.
    document = text.replace("{max_drop: 0.01, objective: latency, time: 15min}", "{time: 1s}")
    (files / "model.yaml").write_text(document.replace("max: 0.9}", "max: 1.5}"))
    cli("run", "model.yaml", "-o", "bundle")


def test_init_says_what_data_it_needs(files, cli):
    (files / "sub").mkdir()
    cli("init", "model.onnx", "-o", "sub/mine.yaml")
    text = (files / "sub/mine.yaml").read_text()
    assert "# x float32 [" in text
    assert "{kind: npz, path: data.npz}" in text
    assert "{model: ../model.onnx}" in text
    line = error_line(cli("init", "model.onnx", "-o", "sub/mine.yaml", code=2))
    assert "mine.yaml" in line
    cli("init", "model.onnx", "-o", "sub/mine.yaml", "--force")


def test_init_refuses_a_model_without_linear_layers(files, cli):
    relu = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[n,4] x) => (float[n,4] y) { y = Relu(x) }'
    )
    onnx.save(relu, files / "none.onnx")
    assert "no linear layer" in error_line(cli("init", "none.onnx", code=3))
    assert not (files / "none.yaml").exists()


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        (("compres", "model.onnx"), "compress"),
        (("compress", "model.onnx", "-o", "x.onnx", "--calibraton", "d.npz"), "--calibration"),
        (("compress", "model.onnx", "-o", "x.onnx", "--include", "encoder.fc"), "'encoder.fc1'?"),
        (("compress", "model.onnx", "-o", "x.onnx", "--include", "xyz"), "the first is"),
        (("validate", "model.onnx", "model.onnx", "--gate", "relative_l3<=1"), "relative_l2"),
    ],
)
def test_what_was_meant_is_suggested(files, cli, wrong, meant):
    assert meant in error_line(cli(*wrong, code=2))


def test_a_mistyped_key_of_a_recipe(files, cli):
    cli("init", "model.onnx", "-c", "data.npz", "--validation", "data.npz")
    text = (files / "model.yaml").read_text()
    for right, wrong in (("calibration", "calibraton"), ("objective", "objektive")):
        (files / "wrong.yaml").write_text(text.replace(right, wrong))
        line = error_line(cli("run", "wrong.yaml", code=2))
        assert f"did you mean {right!r}?" in line


def test_quiet_leaves_results_and_errors(files):
    arguments = ("compress", "model.onnx", "-o", "a.onnx", "--params", "0.5", "--dry-run")
    loud, quiet = start(*arguments), start("--quiet", *arguments)
    assert "note: no --calibration" in loud.stderr
    assert quiet.stderr == ""
    assert quiet.stdout == loud.stdout
    assert "error: " in start("--quiet", "compress", "none.onnx", "-o", "c.onnx", code=2).stderr


def test_warnings_look_like_everything_else(files):
    """Whatever a library does to logging before."""
    code = (
        "import logging, sys; logging.basicConfig(format='LOUD %(message)s'); "
        "from compress_onnx.pipeline.cli import dispatch; dispatch.dispatch(['cache', 'info']); "
        "logging.getLogger('compress_onnx').warning('beware')"
    )
    text = python("-c", code).stderr
    assert "beware" in text
    assert "LOUD" not in text


def test_verbose_tells_what_is_decided(files, cli):
    import logging

    root = logging.getLogger("compress_onnx")
    cli("--verbose", "cache", "info")
    assert root.level == logging.INFO
    cli("cache", "info")
    assert root.level == logging.NOTSET


WRITES_JSON = {
    "compress": (("model.onnx", "-o", "s.onnx", "-p", "0.5", "--no-benchmark"), "advice"),
    "bundle": (("made", "-t", "ort", "-o", "served"), "bundles"),
    "check": (("model.yaml",), "fine"),
    "init": (("model.onnx", "-o", "begun.yaml"), "recipe"),
    "report": (("made",), "gates"),
    "sign": (("made", "--key", "private.pem"), "signature"),
    "compare": (("made", "made"), "changes"),
    "run": (("model.yaml", "-o", "again"), "tool_version"),
    "sweep": (("model.yaml", "-p", "0.5", "--no-benchmark"), "rows"),
}


def test_figures_come_as_json_too(files, cli):
    recipe = {
        "name": "tiny",
        "source": {"model": "model.onnx"},
        "validation": {"kind": "npz", "path": "data.npz"},
        "compression": {"params": 0.5},
        "benchmark": None,
    }
    (files / "model.yaml").write_text(json.dumps(recipe))
    (files / "private.pem").write_bytes(private_key())
    cli("run", "model.yaml", "-o", "made")
    for command, (arguments, key) in WRITES_JSON.items():
        path = files / f"{command}.json"
        cli(command, *arguments, "--json", path)
        assert key in json.loads(path.read_text()), command
    cli("cache", "info", "--json", "cache.json")
    told = json.loads(Path("cache.json").read_text())
    assert told["limit_bytes"] > 0
    cli("cache", "clear", "--json", "cleared.json")
    assert json.loads(Path("cleared.json").read_text()) == {"removed_bytes": told["size_bytes"]}
    # What somebody else wrote is not replaced.
    Path("mine.json").write_text("{}")
    assert "mine.json" in error_line(cli("check", "model.yaml", "--json", "mine.json", code=2))


def private_key():
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    return ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def test_every_command_can_write_json():
    names = {name for name, _ in registered(dispatch.app)} - {"help"}
    assert {name for name in names if "--json" not in parsed_options(name)} == set()


def test_help_comes_in_panels():
    for command, panels in {
        "compress": ("Budget", "Data", "Layers", "Method", "Plan", "Output", "Advanced"),
        "optimize": ("Goal", "Data", "Runs", "Output", "Advanced"),
        "run": ("Budget", "Method", "Output", "Advanced"),
    }.items():
        lines = start(command, "--help").stdout.splitlines()
        firsts = [line.split()[0] for line in lines if line and line[0] != " "]
        assert [first for first in firsts if first in panels] == sorted(panels, key=firsts.index)
