"""What is too large to be trained is refused early; what was trained leaves no checkpoint."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import small_models as small
from cli_runner import Cli, error_line
from onnx import TensorProto, helper, numpy_helper

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.files.cache import ArrayCache
from compress_onnx.pipeline.files.model_file import INLINE_LIMIT_BYTES
from compress_onnx.pipeline.recipe import RecoverySpec
from compress_onnx.pipeline.recover import recover as module
from compress_onnx.pipeline.recover.recover import Lessons, check_trainable, recover_file
from compress_onnx.pipeline.runtime.samples import Samples

SITE_BYTES = 4 * (48 * 64 + 64 * 64 + 24 * 64)


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPRESS_ONNX_CACHE", str(tmp_path / "cache"))
    small.save(small.perceptron(), tmp_path / "model.onnx")
    small.save_rows(tmp_path / "data.npz")
    return tmp_path


@pytest.fixture
def trained(files):
    """Arguments of a recovery of a compressed model."""
    compressed = learn(files / "model.onnx").compress(CompressionSpec(params=0.5))
    compressed.write(files / "small.onnx", external_data=True)
    samples = Samples(dict(np.load(files / "data.npz")))
    settings = RecoverySpec(steps=60, budget=None, learning_rate=0.01)
    return files / "model.onnx", files / "small.onnx", Lessons(samples), settings


def checkpoints(files):
    return [path.name for path in (files / "checkpoints").glob("*.npz")]


def test_a_result_in_a_file_leaves_no_checkpoint(files, trained):
    report = recover_file(*trained, checkpoints=ArrayCache(files / "checkpoints"))
    assert report.improved
    assert (files / "checkpoints").is_dir()
    assert not checkpoints(files)
    assert len(list(files.glob("small.onnx*"))) == 2


def test_a_result_that_cannot_be_written_keeps_its_checkpoint(files, trained, monkeypatch):
    def full_disk(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_model", full_disk)
    with pytest.raises(OSError, match="No space"):
        recover_file(*trained, checkpoints=ArrayCache(files / "checkpoints"))
    assert len(checkpoints(files)) == 1


def test_the_limit_is_one_of_its_own_and_the_message_states_it(trained, monkeypatch):
    assert module.TRAINABLE_LIMIT_BYTES > 5 * INLINE_LIMIT_BYTES
    monkeypatch.setattr("compress_onnx.pipeline.files.model_file.INLINE_LIMIT_BYTES", 1)
    recover_file(*trained)
    monkeypatch.setattr(module, "TRAINABLE_LIMIT_BYTES", 10_000_000)
    recover_file(*trained)
    monkeypatch.setattr(module, "weight_bytes", lambda _model: 20_000_000)
    with pytest.raises(RequestError, match=r"0\.02 GB of weights, and at most 0\.01 GB"):
        recover_file(*trained)


def with_table(model):
    """The same model with 40 kB of weights that no factors make smaller."""
    table = numpy_helper.from_array(np.zeros((100, 100), np.float32), "table")
    model.graph.initializer.append(table)
    model.graph.node.append(helper.make_node("Identity", ["table"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [100, 100]))
    onnx.checker.check_model(model)
    return model


def test_only_what_stays_large_is_refused_early(files, monkeypatch):
    small.save(with_table(small.perceptron()), files / "table.onnx")
    monkeypatch.setattr(module, "TRAINABLE_LIMIT_BYTES", 20_000)
    check_trainable(files / "model.onnx")
    with pytest.raises(RequestError, match="too large to be trained"):
        check_trainable(files / "table.onnx")


def test_the_refusal_comes_before_the_work(files, monkeypatch, capsys):
    small.save(with_table(small.perceptron()), files / "table.onnx")
    recipe = {
        "name": "tiny",
        "source": {"model": "table.onnx"},
        "calibration": {"kind": "npz", "path": "missing.npz"},
        "recovery": {"steps": 3},
        "benchmark": None,
    }
    (files / "recipe.yaml").write_text(json.dumps(recipe))
    monkeypatch.setattr(module, "TRAINABLE_LIMIT_BYTES", 20_000)
    cli = Cli(capsys, monkeypatch)
    for command in (
        ("compress", "table.onnx", "-o", "out.onnx", "-c", "missing.npz", "--recover", "1s"),
        ("run", "recipe.yaml", "-o", "bundle"),
    ):
        assert "too large to be trained" in error_line(cli(*command, code=2))
