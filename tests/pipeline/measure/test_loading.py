"""What a model takes to be opened: in a process of its own, whatever its inputs are called."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import small_models as small
from onnx import TensorProto, helper

from compress_onnx.graph_passes.errors import ModelFileError
from compress_onnx.pipeline.measure import fresh_process, loading
from compress_onnx.pipeline.measure.fresh_process import child, in_fresh_process, save_feeds
from compress_onnx.pipeline.measure.loading import measure_loading
from compress_onnx.pipeline.runtime.session import SessionSpec

SPEC = SessionSpec(threads=1)
FEEDS = {"file": np.ones((1, 8), np.float32)}
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")


def save(path: Path, width: int) -> Path:
    """``file [b, 8] -> y [b, 8]`` through ``width`` neurons; the input's name is one of numpy's."""
    nodes = [
        helper.make_node("MatMul", ["file", "up"], ["h"]),
        helper.make_node("MatMul", ["h", "down"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 8]) for n in ("file", "y")]
    weights = {"up": np.ones((8, width)), "down": np.ones((width, 8))}
    return small.save(small.model_of(nodes, ends[:1], ends[1:], weights), path)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, Path]:
    """Weights of 64 MB, and of a quarter of that."""
    folder = tmp_path_factory.mktemp("models")
    return save(folder / "large.onnx", 1_000_000), save(folder / "small.onnx", 250_000)


@linux
def test_a_larger_model_takes_more_memory_in_a_fresh_process(models):
    report = measure_loading(*models, FEEDS, SPEC, rounds=2)
    assert (report.provider, report.threads, report.rounds) == ("cpu", 1, 2)
    assert report.reference_load_ms > 0 < report.candidate_load_ms
    assert report.load_ratio_low <= report.load_ratio <= report.load_ratio_high
    # Weights are there at least once, and nothing of the other model or of this process is.
    assert 64e6 <= report.reference_resident_bytes < 250e6
    assert 16e6 <= report.candidate_resident_bytes < 64e6
    assert report.resident_ratio_low <= report.resident_ratio <= report.resident_ratio_high < 0.7
    assert report.not_resident is None


def test_rounds_take_both_models_and_mix_their_order(models, monkeypatch):
    order = []

    def pretend(model, feeds, spec):
        order.append(model.name)
        return (30.0, 100.0) if model == models[0] else (10.0, 50.0)

    monkeypatch.setattr(loading, "in_fresh_process", pretend)
    report = measure_loading(*models, FEEDS, SPEC, rounds=40)
    assert report.load_ratio == report.load_ratio_low == report.load_ratio_high == 10 / 30
    assert (report.resident_ratio, report.candidate_resident_bytes) == (0.5, 50)
    first = order[::2]
    assert all(one != other for one, other in zip(first, order[1::2], strict=True))
    assert 10 < first.count("large.onnx") < 30


@pytest.mark.parametrize(("grown", "why"), [(float("nan"), "/proc"), (0.0, "did not grow")])
def test_memory_that_cannot_be_told_is_left_out_with_the_reason(models, monkeypatch, grown, why):
    monkeypatch.setattr(loading, "in_fresh_process", lambda *_: (10.0, grown))
    report = measure_loading(*models, FEEDS, SPEC, rounds=2)
    assert report.load_ratio == 1
    assert report.resident_ratio is report.reference_resident_bytes is None
    assert why in report.not_resident


def test_memory_of_a_gpu_is_not_that_of_the_process(models, monkeypatch):
    monkeypatch.setattr(loading, "in_fresh_process", lambda *_: (10.0, 1e9))
    report = measure_loading(*models, FEEDS, SessionSpec(provider="cuda"), rounds=1)
    assert report.resident_ratio is None
    assert "GPU" in report.not_resident


def test_a_model_that_does_not_load_is_one_line(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    save_feeds(FEEDS, tmp_path / "feeds.npz")
    with pytest.raises(ModelFileError, match=r"bad\.onnx.*--loads 0") as caught:
        in_fresh_process(tmp_path / "bad.onnx", tmp_path / "feeds.npz", SPEC)
    assert "\n" not in str(caught.value)
    assert "ONNX Runtime cannot load" in str(caught.value)


def test_a_process_that_is_killed_is_one_line(models, tmp_path, monkeypatch):
    monkeypatch.setattr(fresh_process, "_CHILD", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(ModelFileError, match="exit code -9"):
        in_fresh_process(models[1], tmp_path / "feeds.npz", SPEC)


def test_what_the_process_prints(models, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fresh_process, "_MAPS", tmp_path / "absent")
    save_feeds(FEEDS, tmp_path / "feeds.npz")
    child([str(models[1]), str(tmp_path / "feeds.npz"), SPEC.model_dump_json()])
    assert capsys.readouterr().out.endswith(", null]")
