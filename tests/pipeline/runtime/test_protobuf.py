"""Above what protobuf can hold, one line says so; the limit is lowered here."""

from __future__ import annotations

import pytest
import small_models as small
from cli_runner import Cli, error_line
from google.protobuf.message import EncodeError

from compress_onnx.graph_passes.errors import ModelFileError
from compress_onnx.pipeline.files.model_file import load_model, save_model
from compress_onnx.pipeline.runtime import protobuf
from compress_onnx.pipeline.runtime.protobuf import serialized


@pytest.fixture
def lowered(monkeypatch):
    monkeypatch.setattr(protobuf, "MESSAGE_LIMIT_BYTES", 20_000)


def test_what_fits_is_the_model():
    model = small.perceptron()
    assert type(model).FromString(serialized(model)) == model


def test_what_protobuf_refuses_is_one_line():
    class Refused:
        def SerializeToString(self, **_options):  # noqa: N802
            raise EncodeError("Failed to serialize proto")

    with pytest.raises(ModelFileError, match=r"2 GiB at most\): do this$"):
        serialized(Refused(), instead="do this")


def test_what_nobody_could_read_is_refused_too(lowered):
    with pytest.raises(ModelFileError, match="too large for one protobuf message"):
        serialized(small.perceptron())


def test_a_model_too_large_for_one_file_leaves_the_old_one(lowered, tmp_path):
    model = load_model(small.save(small.perceptron(), tmp_path / "model.onnx"))
    output = tmp_path / "out.onnx"
    save_model(model, output, external_data=True)
    before = small.listing(tmp_path)
    with pytest.raises(ModelFileError, match="leave --inline out"):
        save_model(model, output, external_data=False)
    assert small.listing(tmp_path) == before


def test_gradients_leave_the_weights_in_their_file(lowered, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPRESS_ONNX_CACHE", str(tmp_path / "cache"))
    small.save_external(small.perceptron(), tmp_path / "model.onnx")
    small.save_rows(tmp_path / "data.npz")
    options = ("-c", "data.npz", "--method", "gauss-newton", "--external-data")
    Cli(capsys, monkeypatch)("compress", "model.onnx", "-o", "out.onnx", *options)
    assert (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--inline", "--params", "0.99"),
        ("-c", "data.npz", "--allocation", "sensitivity", "--method", "asvd", "--one-shot"),
        ("-c", "data.npz", "--method", "asvd", "--sequential"),
    ],
    ids=lambda options: options[-1],
)
def test_every_way_to_a_large_graph_ends_in_one_line(
    lowered, capsys, monkeypatch, tmp_path, options
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPRESS_ONNX_CACHE", str(tmp_path / "cache"))
    small.save_external(small.perceptron(), tmp_path / "model.onnx")
    small.save_rows(tmp_path / "data.npz")
    cli = Cli(capsys, monkeypatch)
    line = error_line(cli("compress", "model.onnx", "-o", "out.onnx", *options, code=2))
    assert "too large for one protobuf message" in line
    assert not (tmp_path / "out.onnx").exists()
    # The way out that the line names is one.
    way_out = ("--method", "asvd", "--one-shot", "--allocation", "uniform")
    cli("compress", "model.onnx", "-o", "out.onnx", "-c", "data.npz", *way_out, "--external-data")
