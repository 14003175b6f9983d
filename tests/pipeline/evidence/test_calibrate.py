"""Calibration: the streamed statistics are those of the full activations, padding left out."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models as small
from onnx import TensorProto, helper

from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.evidence import calibrate as calibrate_module
from compress_onnx.pipeline.evidence.collected import Evidence
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.cache import ArrayCache
from compress_onnx.pipeline.files.original import open_original
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import open_session, run

ENCODER_SITES = ("layer.0.query", "layer.0.key", "pooler")


def calibrated(path, inputs, *, mask=None, batch_size=7, cache=None):
    samples = Samples(inputs, mask, origin="made up")
    settings = RunSettings(batch_size=batch_size, cache=cache)
    return Evidence(open_original(path), samples, settings).calibration


def activations(path: Path, value: str, inputs) -> np.ndarray:
    """``value`` of the model at ``path``, all samples at once, by ONNX Runtime."""
    model = onnx.load(path)
    if value not in {v.name for v in model.graph.input}:
        model.graph.output.append(helper.make_empty_tensor_value_info(value))
        return run(open_session(model.SerializeToString()), inputs, [value])[value]
    return inputs[value]


def assert_moments_of(stats, rows):
    x = rows.astype(np.float64)
    assert stats.count == len(x)
    np.testing.assert_allclose(stats.mean, x.mean(axis=0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(stats.magnitude, np.abs(x).mean(axis=0), rtol=1e-6)
    covariance = np.cov(x.T, bias=True)  # multiplied and kept in float32
    np.testing.assert_allclose(stats.covariance, covariance, rtol=1e-5, atol=1e-6)


def assert_equal_stats(one, other):
    assert one.stats.keys() == other.stats.keys()
    for name, stats in one.stats.items():
        assert stats.count == other.stats[name].count
        for field in ("mean", "magnitude", "second_moment"):
            np.testing.assert_array_equal(getattr(stats, field), getattr(other.stats[name], field))


@pytest.fixture
def perceptron(tmp_path):
    return small.save(small.perceptron(), tmp_path / "model.onnx")


@pytest.fixture
def rows(tmp_path):
    with np.load(small.save_rows(tmp_path / "data.npz")) as archive:
        return dict(archive)


@pytest.fixture
def encoder(tmp_path):
    return small.save(small.encoder(), tmp_path / "encoder.onnx")


@pytest.fixture
def cache(tmp_path):
    return ArrayCache(tmp_path / "cache")


@pytest.fixture
def runs(monkeypatch):
    """How often a model was run to calibrate it."""
    counted = []
    collect = calibrate_module._collect
    monkeypatch.setattr(calibrate_module, "_collect", lambda *a: counted.append(a) or collect(*a))
    return counted


@pytest.mark.parametrize("batch_size", [1, 7, 40, 1000])
def test_statistics_are_those_of_the_full_activations(perceptron, rows, batch_size):
    found = calibrated(perceptron, rows, batch_size=batch_size)
    for site, value in zip(small.SITES, ("x", "r1", "a2"), strict=True):
        assert_moments_of(found.stats[site], activations(perceptron, value, rows))
    assert found.notes == ()
    assert found.origin == "40 samples of made up"


@pytest.mark.parametrize("batches", [1, 3])
def test_shards_add_up(perceptron, rows, batches, monkeypatch):
    monkeypatch.setattr(calibrate_module, "SHARD_BATCHES", batches)
    found = calibrated(perceptron, rows, batch_size=4)
    for site, value in zip(small.SITES, ("x", "r1", "a2"), strict=True):
        assert_moments_of(found.stats[site], activations(perceptron, value, rows))


def test_the_model_is_left_as_it_was(perceptron, rows):
    subject = open_original(perceptron)
    before = [value.name for value in subject.model.graph.outputs]
    Evidence(subject, Samples(rows), RunSettings())
    assert [value.name for value in subject.model.graph.outputs] == before == ["y"]


def test_padding_is_left_out(encoder):
    inputs = small.sentences()
    found = calibrated(encoder, inputs, mask="attention_mask")
    hidden = activations(encoder, "h", inputs)
    assert_moments_of(found.stats["layer.0.query"], hidden[inputs["attention_mask"] == 1])
    assert found.notes == ()


def test_garbage_in_the_padding_changes_nothing(encoder, tmp_path):
    inputs = small.sentences()
    noisy = small.save(small.encoder(garbage=1e6), tmp_path / "noisy.onnx")
    clean, dirty = (calibrated(p, inputs, mask="attention_mask") for p in (encoder, noisy))
    for site in ("layer.0.query", "layer.0.key"):
        for field in ("mean", "second_moment"):
            np.testing.assert_array_equal(
                getattr(clean.stats[site], field), getattr(dirty.stats[site], field)
            )
    unmasked = calibrated(noisy, inputs)
    assert unmasked.stats["layer.0.query"].magnitude.max() > 1e5


def test_one_row_a_sample_has_no_padding(encoder):
    inputs = {name: np.ascontiguousarray(a[:, :2]) for name, a in small.sentences().items()}
    found = calibrated(encoder, inputs, mask="attention_mask")
    assert_moments_of(found.stats["pooler"], activations(encoder, "pooled", inputs))


def test_sites_that_share_an_input_share_its_statistics(encoder, monkeypatch):
    made = []
    accumulator = calibrate_module.MomentAccumulator
    monkeypatch.setattr(
        calibrate_module,
        "MomentAccumulator",
        lambda k, name: made.append(k) or accumulator(k, name),
    )
    found = calibrated(encoder, small.sentences(), mask="attention_mask")
    assert set(found.stats) == set(ENCODER_SITES)
    assert found.stats["layer.0.query"] is found.stats["layer.0.key"]
    assert len(made) == 2


def gemm(tmp_path, *, trans_a):
    """``h = 2x``, then a Gemm that reads h or its transpose."""
    rng = np.random.default_rng(0)
    shape = [8, 20] if trans_a else [20, 8]
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["h"]),
        helper.make_node("Gemm", ["h", "w"], ["y"], name="gemm", transA=int(trans_a)),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [20, 16])
    weights = {"two": np.full(1, 2.0), "w": small.weight(rng, 8, 16)}
    model = small.model_of(nodes, [x], [y], weights)
    inputs = {"x": rng.normal(size=shape).astype(np.float32)}
    return small.save(model, tmp_path / "gemm.onnx"), inputs


@pytest.mark.parametrize("trans_a", [False, True])
def test_a_gemm_that_reads_the_transpose_is_calibrated_on_it(tmp_path, trans_a):
    path, inputs = gemm(tmp_path, trans_a=trans_a)
    seen = 2 * (inputs["x"].T if trans_a else inputs["x"])
    assert_moments_of(calibrated(path, inputs).stats["gemm"], seen)


def test_weights_in_external_data_calibrate_alike(perceptron, rows, tmp_path):
    (tmp_path / "deep").mkdir()
    external = small.save_external(small.perceptron(), tmp_path / "deep" / "model.onnx")
    assert_equal_stats(calibrated(external, rows), calibrated(perceptron, rows))


def test_the_cache_returns_equal_statistics_without_running_the_model(encoder, cache, runs):
    inputs = small.sentences()
    first = calibrated(encoder, inputs, mask="attention_mask", cache=cache)
    second = calibrated(encoder, inputs, mask="attention_mask", cache=cache)
    assert (first.cached, second.cached, len(runs)) == (False, True, 1)
    assert_equal_stats(first, second)
    assert second.notes == first.notes


def test_a_cached_note_is_repeated(tmp_path, cache):
    model = small.encoder()
    model.graph.node[6].input[0] = model.graph.node[7].input[0] = "moved"
    model.graph.node.insert(6, helper.make_node("Transpose", ["h"], ["moved"], perm=[1, 0, 2]))
    path = small.save(model, tmp_path / "moved.onnx")
    inputs = small.sentences()
    first, second = (calibrated(path, inputs, mask="attention_mask", cache=cache) for _ in range(2))
    assert second.cached
    assert first.notes == second.notes
    assert [note.rpartition(" ")[0] for note in first.notes] != []
    assert all("padding counts there" in note for note in first.notes)


def test_another_model_data_or_mask_misses_the_cache(encoder, cache, tmp_path):
    inputs = small.sentences()
    calibrated(encoder, inputs, mask="attention_mask", cache=cache)
    retrained = small.save(small.encoder(seed=1), tmp_path / "encoder.onnx")
    changed = {name: array.copy() for name, array in inputs.items()}
    changed["input_ids"][0, 0] += 1
    assert not calibrated(retrained, inputs, mask="attention_mask", cache=cache).cached
    assert not calibrated(retrained, changed, mask="attention_mask", cache=cache).cached
    assert not calibrated(retrained, inputs, cache=cache).cached
    assert calibrated(retrained, inputs, mask="attention_mask", cache=cache).cached


def test_changed_external_data_misses_the_cache(rows, cache, tmp_path):
    path = small.save_external(small.perceptron(), tmp_path / "model.onnx")
    calibrated(path, rows, cache=cache)
    data = tmp_path / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[1] ^= 1
    data.write_bytes(content)
    assert not calibrated(path, rows, cache=cache).cached


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "other arrays"])
def test_a_damaged_cache_entry_is_noticed_and_rebuilt(perceptron, rows, tmp_path, caplog, damage):
    cache = ArrayCache(tmp_path / "cache")
    first = calibrated(perceptron, rows, cache=cache)
    (entry,) = (tmp_path / "cache").iterdir()
    sound = entry.read_bytes()
    content = bytearray(sound)
    content[len(content) // 2] ^= 4
    damaged = {"flip": bytes(content), "truncate": sound[: len(sound) // 2], "empty": b""}
    if damage == "other arrays":
        np.savez(entry, stranger=np.ones(3))
    else:
        entry.write_bytes(damaged[damage])
    with caplog.at_level(logging.WARNING):
        second = calibrated(perceptron, rows, cache=cache)
    assert not second.cached
    assert_equal_stats(first, second)
    assert ("is damaged and is rebuilt" in caplog.text) == (damage != "other arrays")
    third = calibrated(perceptron, rows, cache=cache)
    assert third.cached
    assert_equal_stats(first, third)


def test_every_position_padded_is_an_error(encoder):
    inputs = small.sentences()
    inputs["attention_mask"][:] = 0
    with pytest.raises(DataError, match="every position is padding"):
        calibrated(encoder, inputs, mask="attention_mask")
