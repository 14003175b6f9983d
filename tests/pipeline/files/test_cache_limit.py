"""The cache stays below its limit, whoever writes to it and whoever is killed meanwhile."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from cli_runner import Cli, error_line

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.pipeline.files.cache import ArrayCache, content_key, default_limit

BLOCK = {"x": np.zeros(10_000)}  # 80 kB, and a little for the archive
KEYS = [content_key(str(number)) for number in range(6)]
LIMIT = 250_000  # three blocks


@pytest.fixture
def cache(tmp_path):
    return ArrayCache(tmp_path, LIMIT)


def age(folder, *keys):
    """Make the entries of ``keys`` old, the first one oldest."""
    for number, key in enumerate(keys):
        os.utime(folder / f"{key}.npz", (1000 + number, 1000 + number))


def test_the_least_recently_used_make_room(cache, tmp_path):
    for key in KEYS[:3]:
        cache.put(key, BLOCK)
    age(tmp_path, *KEYS[:3])
    assert cache.get(KEYS[0]) is not None  # now the second is the oldest
    cache.put(KEYS[3], BLOCK)
    assert [key in KEYS[:4] and cache.get(key) is not None for key in KEYS] == [
        True,
        False,
        True,
        True,
        False,
        False,
    ]
    assert cache.info().size_bytes <= LIMIT
    assert cache.info()[:2] == (tmp_path, 3)


def test_the_limit_holds_whatever_is_written(cache):
    for number in range(20):
        cache.put(content_key(f"many {number}"), {"x": np.zeros(1000 * (number % 7))})
        assert cache.info().size_bytes <= LIMIT


def test_what_is_larger_than_the_limit_evicts_nothing(cache, caplog):
    cache.put(KEYS[0], BLOCK)
    with caplog.at_level(logging.WARNING):
        cache.put(KEYS[1], {"x": np.zeros(LIMIT)})
    assert "more than the limit" in caplog.text
    assert cache.get(KEYS[0]) is not None
    assert cache.get(KEYS[1]) is None


def test_files_of_other_names_are_left_alone(cache, tmp_path):
    strangers = [tmp_path / "data.npz", tmp_path / "deadbeef.npz", tmp_path / "notes.txt"]
    for path in strangers:
        path.write_bytes(bytes(LIMIT))
    for key in KEYS:
        cache.put(key, BLOCK)
    cache.clear()
    assert sorted(tmp_path.iterdir()) == sorted(strangers)


def test_what_is_removed_is_gone_and_nothing_else(cache):
    for key in KEYS[:2]:
        cache.put(key, BLOCK)
    cache.remove(KEYS[0])
    cache.remove(KEYS[5])
    assert cache.get(KEYS[0]) is None
    assert cache.get(KEYS[1]) is not None


WRITER = """
import sys
import numpy as np
from pathlib import Path
from compress_onnx.pipeline.files.cache import ArrayCache, content_key
cache = ArrayCache(Path(sys.argv[1]), int(sys.argv[2]))
print("ready", flush=True)
for turn in range(int(sys.argv[3])):
    number = turn % 5
    cache.put(content_key(str(number)), {"x": np.full(10_000, number)})
    found = cache.get(content_key(str((turn * 3) % 5)))
    assert found is None or (found["x"] == (turn * 3) % 5).all()
"""


def writer(folder, turns):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(LIMIT), str(turns)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_several_processes_may_use_one_cache(cache, tmp_path):
    processes = [writer(tmp_path, 60) for _ in range(3)]
    for process in processes:
        _, problems = process.communicate(timeout=100)
        assert (process.returncode, problems) == (0, "")
    assert cache.info().size_bytes <= LIMIT


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_killed_writers_leave_nothing_half_readable_and_nothing_for_ever(cache, tmp_path, caplog):
    for wait in (0.0, 0.003, 0.01, 0.03):
        process = writer(tmp_path, 100_000)
        process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for number, key in enumerate(KEYS[:5]):
            found = cache.get(key)
            assert found is None or (found["x"] == number).all()
    (tmp_path / f".{KEYS[0]}.host-1-00000000.tmp.npz").write_bytes(bytes(LIMIT))
    assert not caplog.records
    os.utime(tmp_path / f".{KEYS[0]}.host-1-00000000.tmp.npz", (1, 1))
    cache.put(KEYS[0], BLOCK)
    assert not list(tmp_path.glob(".*host-1-*"))
    assert cache.info().size_bytes <= LIMIT


@pytest.mark.parametrize(
    ("text", "size"), [(None, 2e9), ("", 2e9), ("500MB", 5e8), ("1GiB", 2**30), ("1000", 1000)]
)
def test_the_limit_is_a_size(monkeypatch, text, size):
    monkeypatch.delenv("COMPRESS_ONNX_CACHE_LIMIT", raising=False)
    if text is not None:
        monkeypatch.setenv("COMPRESS_ONNX_CACHE_LIMIT", text)
    assert default_limit() == size


def test_a_limit_that_is_none_is_named(monkeypatch, capsys):
    monkeypatch.setenv("COMPRESS_ONNX_CACHE_LIMIT", "plenty")
    with pytest.raises(RequestError, match="'plenty', which is no size"):
        default_limit()
    line = error_line(Cli(capsys, monkeypatch)("cache", "info", code=2))
    assert "COMPRESS_ONNX_CACHE_LIMIT" in line


def test_the_command_line_tells_and_clears(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("COMPRESS_ONNX_CACHE", str(tmp_path))
    monkeypatch.setenv("COMPRESS_ONNX_CACHE_LIMIT", "1MB")
    cli = Cli(capsys, monkeypatch)
    ArrayCache(tmp_path).put(KEYS[0], BLOCK)
    lines = dict(line.split(maxsplit=1) for line in cli("cache", "info").out.splitlines())
    assert lines == {"folder": str(tmp_path), "entries": "1", "size": "80.3 kB", "limit": "1.00 MB"}
    cli("cache", "clear")
    assert not list(tmp_path.iterdir())
    assert "entries 0" in cli("cache", "info").out.replace("  ", " ")
