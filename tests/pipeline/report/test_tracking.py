"""``run --log``: what MLflow gets, read back by MLflow, and that nothing secret is stored."""

from __future__ import annotations

import builtins
import json
import sys
from pathlib import Path

import pytest
import small_models as small
from cli_runner import Cli, error_line

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.pipeline.cli.html import command_line
from compress_onnx.pipeline.files.bundle import verify_manifest
from compress_onnx.pipeline.report import read_report
from compress_onnx.pipeline.report.tracking import tracker_of, without_credentials

RECIPE = {
    "name": "tiny",
    "source": {"model": "model.onnx"},
    "calibration": {"kind": "npz", "path": "data.npz"},
    "validation": {"kind": "npz", "path": "data.npz"},
    "domains": {"other": {"kind": "npz", "path": "data.npz"}},
    "compression": {"params": 0.5, "method": {"name": "svd"}},
    "gates": [{"quantity": "relative_l2", "max": 0.9}, {"quantity": "size_ratio", "max": 0.9}],
    "benchmark": None,
}


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path) -> Cli:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.delenv(name, raising=False)
    small.save(small.perceptron(), tmp_path / "model.onnx")
    small.save_rows(tmp_path / "data.npz")
    (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE))
    return Cli(capsys, monkeypatch)


def client_of(uri: str, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    tracking = pytest.importorskip("mlflow.tracking", reason="needs the mlflow extra")
    return tracking.MlflowClient(tracking_uri=uri)


def only_run(client, experiment="compress-onnx"):
    found = client.get_experiment_by_name(experiment)
    (run,) = client.search_runs([found.experiment_id])
    return run


@pytest.fixture(params=["file:{}/store", "sqlite:///{}/runs.db"])
def uri(request, tmp_path) -> str:
    pytest.importorskip("mlflow", reason="needs the mlflow extra")
    if request.param.startswith("sqlite"):
        pytest.importorskip("sqlalchemy", reason="needs the mlflow extra")
    return request.param.format(tmp_path)


def test_mlflow_has_what_the_run_said(tmp_path, cli, uri, monkeypatch):
    printed = cli("run", "recipe.yaml", "-o", "bundle", "--log", f"mlflow:{uri}")
    client = client_of(uri, monkeypatch)
    run = only_run(client)
    assert f"logged: {run.info.run_id}" in printed.out
    assert (run.info.run_name, run.info.status) == ("tiny", "FINISHED")
    assert run.data.params["compression.params"] == "0.5"
    assert run.data.params["compression.method.name"] == "svd"
    assert run.data.params["gates.1.quantity"] == "size_ratio"
    report = read_report(tmp_path / "bundle")
    size = report.size
    assert run.data.metrics["size_ratio"] == size.candidate_bytes / size.reference_bytes
    (l2,) = [row.relative_l2 for row in report.validation.outputs]
    assert run.data.metrics["relative_l2"] == pytest.approx(l2)
    assert "relative_l2.other" in run.data.metrics
    assert run.data.tags["compress_onnx.verdict"] == "passed"
    # All of the bundle arrived, as its manifest says.
    fetched = client.download_artifacts(run.info.run_id, "bundle", str(tmp_path))
    assert "model.onnx" in verify_manifest(Path(fetched)).files
    assert not (tmp_path / "mlruns").exists()


def test_a_failed_gate_is_a_verdict_and_no_failure_of_the_run(tmp_path, cli, uri, monkeypatch):
    recipe = RECIPE | {"gates": [{"quantity": "size_ratio", "max": 0.001}]}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    cli("run", "recipe.yaml", "-o", "bundle", "--log", f"mlflow:{uri}", code=1)
    run = only_run(client_of(uri, monkeypatch), "mine")
    assert (run.info.status, run.data.tags["compress_onnx.verdict"]) == ("FINISHED", "failed")


def test_a_tracker_out_of_reach_is_told_before_anything_is_done(tmp_path, cli, monkeypatch):
    pytest.importorskip("mlflow", reason="needs the mlflow extra")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = "mlflow:http://somebody:secret@127.0.0.1:9"
    line = error_line(cli("run", "recipe.yaml", "-o", "bundle", "--log", uri, code=2))
    assert "cannot log to MLflow at http://***@127.0.0.1:9" in line
    assert "secret" not in line
    assert not (tmp_path / "bundle").exists()


def test_what_breaks_while_it_is_logged_stands_there_as_failed(tmp_path, cli, uri, monkeypatch):
    client = client_of(uri, monkeypatch)

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(type(client), "log_artifacts", full)
    line = error_line(cli("run", "recipe.yaml", "-o", "bundle", "--log", f"mlflow:{uri}", code=2))
    assert "no space left" in line
    assert only_run(client).info.status == "FAILED"
    verify_manifest(tmp_path / "bundle")


@pytest.mark.parametrize("text", ["mlflow", "mlflow:", "wandb:x", "mlflow: "])
def test_other_trackers_are_refused(tmp_path, cli, text):
    line = error_line(cli("run", "recipe.yaml", "-o", "bundle", "--log", text, code=2))
    assert "mlflow:URI" in line
    assert not (tmp_path / "bundle").exists()


def test_without_the_extra_it_is_one_line(tmp_path, cli, monkeypatch):
    imported = builtins.__import__

    def without(name, *rest, **more):
        if name.partition(".")[0] == "mlflow":
            raise ImportError(name)
        return imported(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    arguments = ("run", "recipe.yaml", "-o", "bundle", "--log", "mlflow:file:store")
    assert "compress-onnx[mlflow]" in error_line(cli(*arguments, code=2))
    assert not (tmp_path / "bundle").exists()


def test_credentials_are_no_text():
    assert (
        without_credentials("a http://u:p@h/x sftp://t:a@b@h b@c")
        == "a http://***@h/x sftp://***@h b@c"
    )
    assert str(tracker_of("mlflow:https://token@host")) == "https://***@host"
    with pytest.raises(RequestError, match=r"\*\*\*@") as caught:
        tracker_of("wandb:https://token@host")
    assert "token" not in str(caught.value)


def test_a_report_holds_no_credentials(monkeypatch):
    """A command stands in reports as it was typed, but for these."""
    typed = ["compress-onnx", "run", "a.yaml", "--log", "mlflow:http://u:secret@h/x", "-o", "u:p@h"]
    monkeypatch.setattr(sys, "argv", typed)
    told = "compress-onnx run a.yaml --log 'mlflow:http://***@h/x' -o u:p@h"
    assert command_line() == told


def test_names_of_strangers_are_changed_to_what_mlflow_takes(tmp_path, cli, uri, monkeypatch):
    model = small.perceptron()
    name = 'y söt|"<b>'
    model.graph.node[-1].output[0] = model.graph.output[0].name = name
    small.save(model, tmp_path / "model.onnx")
    cli("run", "recipe.yaml", "-o", "bundle", "--log", f"mlflow:{uri}")
    metrics = only_run(client_of(uri, monkeypatch)).data.metrics
    assert any("y s_t___b_" in known for known in metrics)
