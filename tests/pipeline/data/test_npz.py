"""Samples from ``.npz`` files, also damaged ones."""

import io
import pickle
import zipfile

import numpy as np
import pytest
from loading import load

from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.data import npz
from compress_onnx.pipeline.data.npz import load_npz
from compress_onnx.pipeline.recipe import NpzData


def test_npz_with_labels_relative_to_the_recipe(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.arange(6.0).reshape(3, 2), y=np.arange(3))
    samples = load(NpzData(kind="npz", path="data.npz", labels="y"), tmp_path, ["x"])
    np.testing.assert_array_equal(samples.inputs["x"], np.arange(6.0).reshape(3, 2))
    np.testing.assert_array_equal(samples.labels, np.arange(3))
    assert "data.npz" in samples.origin


def test_compressed_npz_with_a_mask(tmp_path):
    ids = np.arange(6).reshape(2, 3)
    np.savez_compressed(tmp_path / "data.npz", ids=ids, mask=np.ones_like(ids))
    assert load_npz(tmp_path / "data.npz", mask="mask").mask_name == "mask"


def test_limit_is_a_seeded_subset_in_order(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.arange(100.0))
    spec = NpzData(kind="npz", path="data.npz", limit=10)
    one, same, other = (
        load(spec, tmp_path, ["x"], seed=seed).inputs["x"].tolist() for seed in (0, 0, 1)
    )
    assert one == same == sorted(set(one))
    assert len(one) == 10
    assert one != other


def test_names_that_do_not_match_the_model_are_refused(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.zeros(2), z=np.zeros(2))
    spec = NpzData(kind="npz", path="data.npz")
    for names in (["x"], ["x", "y"], ["x", "y", "z"]):
        with pytest.raises(DataError, match="the data has inputs x, z, the model wants"):
            load(spec, tmp_path, names)


def write_member(path, name, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)


def flip_a_value(path):
    content = path.read_bytes()
    path.write_bytes(content.replace(np.float64(500).tobytes(), np.float64(501).tobytes()))


def cut_the_array(path):
    write_member(path, "x.npy", zipfile.ZipFile(path).read("x.npy")[:200])


def save_npy(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def replace_with_folder(path):
    path.unlink()
    path.mkdir()


def begin_as_an_array(path):
    """numpy sees a single array, zipfile an archive."""
    single = io.BytesIO()
    np.save(single, np.zeros(3))
    path.write_bytes(single.getvalue() + path.read_bytes())


# numpy's own reader stumbles over it in its tokenizer.
HEADER_WITHOUT_END = b"\x93NUMPY\x01\x00\x20\x00" + b"{'descr': '<f4\xbe, ".ljust(31) + b"\n"

DAMAGES = {
    "missing": lambda path: path.unlink(),
    "folder": replace_with_folder,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:4000]),
    "empty": lambda path: path.write_bytes(b""),
    "flipped": flip_a_value,
    "short array": cut_the_array,
    "header": lambda path: write_member(path, "x.npy", HEADER_WITHOUT_END),
    "no array": lambda path: write_member(path, "x.txt", "hello"),
    "npy": save_npy,
    "both": begin_as_an_array,
    "objects": lambda path: np.savez(path, x=np.array([{"a": 1}], dtype=object)),
    "pickle": lambda path: path.write_bytes(pickle.dumps({"x": np.zeros(3)})),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_npz_is_one_line_that_names_the_file(tmp_path, damage):
    path = tmp_path / "data.npz"
    np.savez(path, x=np.arange(1000.0))
    DAMAGES[damage](path)
    with pytest.raises(DataError) as caught:
        load_npz(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_npz_that_unpacks_to_more_than_the_memory_is_not_unpacked(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros(100_000))
    assert load_npz(tmp_path / "bomb.npz")
    monkeypatch.setattr(npz, "memory_bytes", lambda: 700_000)
    with pytest.raises(DataError, match="more than this machine's memory"):
        load_npz(tmp_path / "bomb.npz")


def test_npz_without_the_named_labels(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.zeros(2))
    with pytest.raises(DataError, match="no labels 'y', only x"):
        load_npz(tmp_path / "data.npz", labels="y")
