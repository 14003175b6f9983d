"""Rivals in environments of their own: what is asked, what is made of the answer, and failures."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from studies.performance.rivals import environment
from studies.performance.rivals import rows as asking
from studies.performance.rivals.environment import RivalUnavailableError, answer, python_with
from studies.performance.rows import DYNAMIC, ORIGINAL
from studies.performance.subject import Subject
from tiny_models import samples, saved, two_layers

from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.measure.metrics.embedding import EmbeddingFidelity
from compress_onnx.pipeline.recipe import EmbeddingMetric
from compress_onnx.pipeline.runtime.samples import Batch

FEATURES = 6
NAMES = [ORIGINAL, DYNAMIC, asking.COMPILED, asking.QUANTIZED]


@pytest.fixture
def installed(monkeypatch):
    """Commands that were called; environments appear without being made."""
    called = []

    def call(command):
        called.append(command)
        if command[1:3] == ["-m", "venv"]:
            Path(command[3]).mkdir(parents=True)
        if "broken==1" in command:
            raise RivalUnavailableError("no such version")

    monkeypatch.setattr(environment, "_call", call)
    return called


def test_an_environment_is_made_once(tmp_path, installed):
    first = python_with("rival", ["tool==1"], tmp_path)
    assert python_with("rival", ["tool==1"], tmp_path) == first
    assert len(installed) == 2
    assert python_with("rival", ["tool==2"], tmp_path) != first


def test_an_environment_that_fails_leaves_nothing(tmp_path, installed):
    with pytest.raises(RivalUnavailableError, match="no such version"):
        python_with("rival", ["broken==1"], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_script_answers(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import json, sys\n"
        "asked = json.load(open(sys.argv[1]))\n"
        "json.dump(asked['x'] + 1, open(sys.argv[2], 'w'))\n"
    )
    assert answer(Path(sys.executable), script, {"x": 1}, tmp_path) == 2


def test_a_script_that_fails_says_why_in_one_line(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit('first\\nno such operator')\n")
    with pytest.raises(RivalUnavailableError, match="no such operator") as caught:
        answer(Path(sys.executable), script, {}, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.fixture
def pruning(monkeypatch):
    """onnxsim's script, whose reading of samples needs no onnxsim."""
    monkeypatch.setitem(sys.modules, "onnxsim", ModuleType("onnxsim"))
    return importlib.import_module("studies.performance.rivals.onnxsim_pruning")


@pytest.fixture
def script(monkeypatch):
    """OpenVINO's script, whose pure parts need neither OpenVINO nor NNCF."""
    for name in ("openvino", "nncf"):
        stub = ModuleType(name)
        stub.Model = object
        monkeypatch.setitem(sys.modules, name, stub)
    return importlib.import_module("studies.performance.rivals.openvino_int8")


def test_the_script_measures_what_the_product_measures(script):
    rng = np.random.default_rng(0)
    mask = np.ones((5, 4), bool)
    mask[1:, 3] = False
    mask[4, 1:] = False
    reference = rng.normal(size=(5, 4, 8))
    candidate = reference + rng.normal(size=(5, 4, 8)) / 3
    metric = EmbeddingFidelity(EmbeddingMetric(kind="embedding", neighbours=1))
    metric.update(Batch({}, np.arange(5), mask, None), {"y": reference}, {"y": candidate})

    def answers(value, size):
        arrays = {"mask": mask, "row": np.arange(5)}

        def run(feeds):
            return [value[feeds["row"], : feeds["mask"].shape[1]]]

        return list(script.answers(run, arrays, "mask", size, 0))

    for size in (1, 5):
        found = script.fidelity(answers(reference, size), answers(candidate, size), pooling=True)
        assert found == pytest.approx(metric.result()["cosine"])
    damaged = rng.normal(size=(5, 4, 8))
    assert script.fidelity(answers(reference, 5), answers(damaged, 5), pooling=True) < 0.5


def test_the_script_takes_turns(script):
    calls = []
    models = [lambda _: calls.append("a"), lambda _: calls.append("b")]
    times = script.interleaved(models, {}, rounds=3, warmup=2)
    assert np.shape(times) == (3, 2)
    assert all(set(calls[i : i + 2]) == {"a", "b"} for i in range(0, 10, 2))


@pytest.fixture
def subject(tmp_path):
    learned = learn(saved(tmp_path, two_layers()[0]), samples(FEATURES, 50))
    return Subject(learned, samples(FEATURES, 20, seed=3), None)


def ask(subject, tmp_path):
    paths = dict.fromkeys((ORIGINAL, DYNAMIC, "other"), subject.original)
    feeds = {"1×2": {"x": np.zeros((1, 2, FEATURES), np.float32)}}
    ours = {"integers": tmp_path / "ours.onnx"}
    return asking.openvino_lines(subject, paths, ours, feeds, folder=tmp_path, rounds=3)


def test_answers_become_lines(subject, tmp_path, monkeypatch):
    asked = {}

    def answered(_python, _script, request, _folder):
        asked.update(json.loads(json.dumps(request)))
        model = {"precision": "bf16", "cosine": 0.5, "in_a_batch": 0.25, "bytes": 1_000_000}
        return {
            "models": {asking.COMPILED: model, asking.QUANTIZED: model},
            "names": NAMES,
            "times_ns": {"1×2": [[8.0, 4.0, 2.0, 1.0]] * 3},
        }

    monkeypatch.setattr(asking, "python_with", lambda *_: Path("python"))
    monkeypatch.setattr(asking, "answer", answered)
    _, quantized = ask(subject, tmp_path)
    assert quantized.name == f"{asking.QUANTIZED} (bf16)"
    assert quantized.figures["cosine"] == "0.5000"
    assert quantized.speeds[ORIGINAL, "1×2"] == "8.00 [8.00, 8.00]"
    assert quantized.speeds[DYNAMIC, "1×2"] == "4.00 [4.00, 4.00]"
    assert list(asked["anchors"]) == [ORIGINAL, DYNAMIC]
    assert asked["compiled"] == {
        asking.COMPILED: str(subject.original),
        "OpenVINO, ours: integers": str(tmp_path / "ours.onnx"),
    }
    with np.load(asked["calibration"]) as calibration:
        assert len(calibration["x"]) == 50


def test_pruned_once_and_rounded(subject, tmp_path, monkeypatch):
    def answered(_python, _script, request, _folder):
        model = onnx.load(request["original"])
        onnx.save(model, request["output"])
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(9), "left over"))
        onnx.save(model, request["integers"])

    monkeypatch.setattr(asking, "python_with", lambda *_: Path("python"))
    monkeypatch.setattr(asking, "answer", answered)
    first, second = asking.pruned_rows(subject, tmp_path)
    with pytest.raises(RivalUnavailableError):
        second.build(tmp_path / "too early.onnx")
    first.build(tmp_path / "pruned.onnx")
    second.build(tmp_path / "rounded.onnx")
    names = [weight.name for weight in onnx.load(tmp_path / "pruned.onnx").graph.initializer]
    rounded = onnx.load(tmp_path / "rounded.onnx").graph.initializer
    assert {weight.name for weight in rounded} == set(names)


def test_samples_of_one_length_are_one_batch(pruning, tmp_path):
    mask = np.array([[1, 1, 0], [0, 1, 0], [0, 1, 1]])
    tokens = np.arange(9).reshape(3, 3)
    np.savez(tmp_path / "samples.npz", mask=mask, tokens=tokens, other=np.arange(3))
    short, long = pruning.batches(str(tmp_path / "samples.npz"), "mask")
    np.testing.assert_array_equal(short["tokens"], [[4]])
    np.testing.assert_array_equal(long["tokens"], [[0, 1], [7, 8]])
    np.testing.assert_array_equal(long["mask"], np.ones((2, 2)))
    np.testing.assert_array_equal(long["other"], [0, 2])


def test_samples_without_a_mask_are_taken_whole(pruning, tmp_path, monkeypatch):
    monkeypatch.setattr(pruning, "BATCH", 2)
    pixels = np.arange(12).reshape(3, 4)
    np.savez(tmp_path / "samples.npz", pixels=pixels)
    found = [batch["pixels"] for batch in pruning.batches(str(tmp_path / "samples.npz"), None)]
    assert [len(batch) for batch in found] == [2, 1]
    np.testing.assert_array_equal(np.concatenate(found), pixels)


def test_an_environment_that_is_not_there_is_a_line(subject, tmp_path, monkeypatch):
    def refuse(*_):
        raise RivalUnavailableError("pip found nothing")

    monkeypatch.setattr(asking, "python_with", refuse)
    (line,) = ask(subject, tmp_path)
    assert line.name == f"{asking.COMPILED}: not measured, pip found nothing"
