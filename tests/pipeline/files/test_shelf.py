"""Arrays on a shelf are read as they were written, here and elsewhere."""

from __future__ import annotations

import gc
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from compress_onnx.graph_passes.errors import OutputError
from compress_onnx.pipeline.files import shelf as module
from compress_onnx.pipeline.files.shelf import Shelf


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64, np.bool_])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (5, 3), (2, 0, 4)])
def test_arrays_come_back(dtype, shape):
    shelf, rng = Shelf(), np.random.default_rng(0)
    arrays = [np.asarray(10 * rng.normal(size=shape)).astype(dtype) for _ in range(3)]
    kept = [shelf.put(array) for array in arrays]
    for array, found in zip(arrays, kept, strict=True):
        assert (found.dtype, found.shape, found.nbytes) == (array.dtype, shape, array.nbytes)
        assert np.asarray(found).dtype == dtype
        np.testing.assert_array_equal(np.asarray(found), array)


def test_any_order_in_memory_is_kept_as_it_reads():
    array = np.arange(12).reshape(3, 4).T
    np.testing.assert_array_equal(np.asarray(Shelf().put(array)), array)


def test_each_reading_is_an_array_of_its_own():
    kept = Shelf().put(np.zeros(4))
    np.asarray(kept)[:] = 1
    assert not np.asarray(kept).any()
    with pytest.raises(ValueError, match="read anew"):
        np.asarray(kept, copy=False)


def test_threads_read_and_write_side_by_side():
    shelf = Shelf()

    def there_and_back(number):
        return np.asarray(shelf.put(np.full(5000, number))).tolist() == [number] * 5000

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(there_and_back, range(200)))


def test_elsewhere_it_is_an_array():
    array = np.arange(5)
    copy = pickle.loads(pickle.dumps(Shelf().put(array)))  # noqa: S301  # our own
    assert isinstance(copy, np.ndarray)
    np.testing.assert_array_equal(copy, array)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux's list of open files")
def test_its_file_goes_with_its_arrays():
    def open_files():
        gc.collect()
        return len([*Path("/proc/self/fd").iterdir()])

    before = open_files()
    kept = Shelf().put(np.zeros(9))
    assert open_files() == before + 1
    np.asarray(kept)
    del kept
    assert open_files() == before


def test_a_folder_that_cannot_be_written_is_one_clear_line(monkeypatch):
    def full(**_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "TemporaryFile", full)
    with pytest.raises(OutputError, match="No space left on device: set TMPDIR"):
        Shelf().put(np.zeros(3))
