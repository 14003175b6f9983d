"""The array cache: what comes out is what went in, or nothing."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import small_models as small

from compress_onnx.pipeline.files.cache import ArrayCache, content_key, default_folder

KEY = content_key("k")
ARRAYS = {"a/b": np.arange(12.0).reshape(3, 4), "count": np.array(3), "mask": np.ones(2, bool)}


@pytest.fixture
def cache(tmp_path):
    return ArrayCache(tmp_path / "deep" / "cache")


def test_arrays_come_back_as_they_were(cache):
    assert cache.get(KEY) is None
    cache.put(KEY, ARRAYS)
    found = cache.get(KEY)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    assert cache.get("other") is None


def test_a_later_entry_replaces_an_earlier_one(cache):
    cache.put(KEY, ARRAYS)
    cache.put(KEY, {"x": np.zeros(1)})
    assert cache.get(KEY).keys() == {"x"}


@pytest.mark.parametrize("bit", [0x01, 0x10, 0xFF])
def test_no_damage_of_an_entry_passes_for_data(cache, tmp_path, caplog, bit):
    cache.put(KEY, ARRAYS)
    (path,) = (tmp_path / "deep" / "cache").iterdir()
    sound = path.read_bytes()
    noticed = 0
    for position in range(len(sound)):
        path.write_bytes(sound[:position] + bytes([sound[position] ^ bit]) + sound[position + 1 :])
        with caplog.at_level(logging.CRITICAL):
            found = cache.get(KEY)
        # Some bytes (dates, attributes) say nothing about the arrays.
        same = found is None or all(
            name in found and np.array_equal(found[name], array) for name, array in ARRAYS.items()
        )
        renamed = found is not None and found.keys() != ARRAYS.keys()
        assert same or renamed, position
        noticed += found is None
    assert noticed > len(sound) // 4


def test_no_truncated_entry_passes_for_data(cache, tmp_path):
    cache.put(KEY, ARRAYS)
    (path,) = (tmp_path / "deep" / "cache").iterdir()
    sound = path.read_bytes()
    for length in range(0, len(sound), 7):
        path.write_bytes(sound[:length])
        assert cache.get(KEY) is None


def test_pickled_objects_are_never_loaded(cache, tmp_path):
    cache.put(KEY, ARRAYS)
    np.savez(tmp_path / "deep" / "cache" / f"{KEY}.npz", x=np.array([{}], dtype=object))
    assert cache.get(KEY) is None


def test_a_cache_that_cannot_be_written_only_warns(tmp_path, caplog):
    (tmp_path / "file").write_text("x")
    cache = ArrayCache(tmp_path / "file" / "cache")
    with caplog.at_level(logging.WARNING):
        cache.put(KEY, ARRAYS)
    assert "nothing is cached" in caplog.text
    assert cache.get(KEY) is None
    assert small.listing(tmp_path) == {"file": b"x"}


def test_the_folder_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.setenv("COMPRESS_ONNX_CACHE", str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.setenv("COMPRESS_ONNX_CACHE", "")
    assert default_folder().name == "compress-onnx"


def test_keys_tell_apart_what_differs():
    parts = [
        ("a", "b"),
        ("ab",),
        ("a", "b", ""),
        ({"x": np.zeros(4)},),
        ({"y": np.zeros(4)},),
        ({"x": np.zeros(4, np.float32)},),
        ({"x": np.zeros((2, 2))},),
        ({"x": np.zeros(4), "y": np.zeros(4)},),
    ]
    assert len({content_key(*part) for part in parts}) == len(parts)
    x, y = np.arange(6.0).reshape(2, 3), np.zeros(1)
    assert content_key({"x": x, "y": y}) == content_key({"y": y, "x": np.asfortranarray(x)})


def test_a_checkpoint_evicts_no_more_than_checkpoints(tmp_path):
    learned, others = {"x": np.zeros(100, np.uint8)}, {"x": np.ones(700, np.uint8)}
    cache = ArrayCache(tmp_path, limit_bytes=1200)
    first, second = content_key("first"), content_key("second")
    cache.put(KEY, learned)
    cache.checkpoints.put(first, others)
    cache.checkpoints.put(second, others)
    assert cache.get(KEY) is not None
    assert cache.checkpoints.get(first) is None
    assert cache.checkpoints.get(second) is not None
    assert (cache.info().entries, cache.info().limit_bytes) == (2, 1200)
    cache.clear()
    assert cache.info().entries == 0
    assert cache.checkpoints.get(second) is None


def test_a_single_array_in_place_of_an_entry_is_no_entry(tmp_path, caplog):
    cache = ArrayCache(tmp_path)
    key = content_key("x")
    cache.put(key, {"a": np.arange(3)})
    (entry,) = tmp_path.glob("*.npz")
    with entry.open("wb") as file:
        np.save(file, np.zeros(3))
    assert cache.get(key) is None
    assert "damaged" in caplog.text
