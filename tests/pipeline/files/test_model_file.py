"""Reading strangers' files safely; writing models that appear complete or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models as small
from onnx import TensorProto, helper, numpy_helper

from compress_onnx.graph_passes.errors import ModelFileError, OutputError
from compress_onnx.pipeline.files.model_file import (
    content_digest,
    data_files,
    load_model,
    model_size,
    save_model,
    weight_bytes,
)
from compress_onnx.pipeline.runtime.session import open_session, run


@pytest.fixture
def inline(tmp_path):
    return small.save(small.perceptron(), tmp_path / "model.onnx")


@pytest.fixture
def external(tmp_path):
    (tmp_path / "deep").mkdir()
    return small.save_external(small.perceptron(), tmp_path / "deep" / "model.onnx")


def weights(path: Path) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}


def assert_same_model(one: Path, other: Path) -> None:
    expected, found = weights(one), weights(other)
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    x = np.random.default_rng(0).normal(size=(3, small.FEATURES)).astype(np.float32)
    outputs = [run(open_session(path), {"x": x})["y"] for path in (one, other)]
    np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize("to_external", [False, True])
@pytest.mark.parametrize("source", ["inline", "external"])
def test_a_model_survives_saving(request, tmp_path, source, to_external):
    path, output = request.getfixturevalue(source), tmp_path / "out" / "copy.onnx"
    save_model(load_model(path), output, external_data=to_external)
    assert_same_model(path, output)
    onnx.checker.check_model(output, full_check=True)
    names = sorted(small.listing(output.parent))
    assert len(names) == (2 if to_external else 1)
    assert [file.parent for file in data_files(load_model(output))] == [output.parent] * (
        len(names) - 1
    )


def test_saving_leaves_the_source_as_it_was(external, tmp_path):
    before = small.listing(external.parent)
    for flag in (True, False):
        save_model(load_model(external), tmp_path / "out" / "copy.onnx", external_data=flag)
    assert small.listing(external.parent) == before


def test_small_models_keep_their_weights_inside(external, tmp_path):
    save_model(load_model(external), tmp_path / "out" / "copy.onnx")
    assert list(small.listing(tmp_path / "out")) == ["copy.onnx"]


def test_a_model_with_data_may_replace_itself(external):
    original = small.save(small.perceptron(), external.parent.parent / "original.onnx")
    save_model(load_model(external), external, external_data=True)
    assert_same_model(original, external)


def test_the_files_of_the_input_are_never_overwritten(external):
    before = small.listing(external.parent)
    data = external.with_name("model.onnx.data")
    link = external.with_name("link.onnx")
    link.symlink_to(data)
    for target in (data, link):
        with pytest.raises(OutputError, match="holds the weights of the input model"):
            save_model(load_model(external), target)
    link.unlink()
    assert small.listing(external.parent) == before


@pytest.mark.parametrize("to_external", [False, True])
def test_a_failed_write_leaves_nothing(inline, tmp_path, monkeypatch, to_external):
    output = tmp_path / "out" / "copy.onnx"
    save_model(load_model(inline), output, external_data=to_external)
    model = load_model(small.save(small.perceptron(seed=1), tmp_path / "model.onnx"))
    before = small.listing(tmp_path)

    def full_disk(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    monkeypatch.setattr(onnx, "save", full_disk)
    with pytest.raises(OutputError, match="No space left on device"):
        save_model(model, output, external_data=to_external)
    assert small.listing(tmp_path) == before


def external_entry(path: Path, **changes: str | int) -> Path:
    """Rewrite what every tensor of the model at ``path`` says about its data."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        del tensor.external_data[:]
        for key, value in (entries | {k: str(v) for k, v in changes.items()}).items():
            tensor.external_data.add(key=key, value=value)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("location", "told"), [("a\0b", "null byte"), ("n" * 300, "no file"), ("n/" * 3000, "no file")]
)
def test_names_that_no_file_has(external, location, told):
    with pytest.raises(ModelFileError, match=told):
        load_model(external_entry(external, location=location))


@pytest.mark.parametrize("location", ["../outside.data", "deeper/../../outside.data", "/absolute"])
def test_data_outside_the_folder_is_refused(external, tmp_path, location):
    data = external.with_name("model.onnx.data")
    data.rename(tmp_path / "outside.data")
    (external.parent / "deeper").mkdir()
    if location == "/absolute":
        location = str(tmp_path / "outside.data")
    with pytest.raises(ModelFileError, match="outside its own folder"):
        load_model(external_entry(external, location=location))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_links_out_of_the_folder_are_refused(external, tmp_path, kind):
    outside = tmp_path / "outside"
    outside.mkdir()
    external.with_name("model.onnx.data").rename(outside / "data")
    link = external.parent / "link"
    link.symlink_to(outside / "data" if kind == "file" else outside)
    location = "link" if kind == "file" else "link/data"
    with pytest.raises(ModelFileError, match="outside its own folder"):
        load_model(external_entry(external, location=location))


def test_windows_paths_are_refused_everywhere(external):
    with pytest.raises(ModelFileError, match="outside its own folder"):
        load_model(external_entry(external, location="C:\\weights.data"))


def test_a_link_inside_the_folder_is_followed(external):
    expected, data = weights(external), external.with_name("model.onnx.data")
    data.rename(external.with_name("real.data"))
    data.symlink_to("real.data")
    loaded = load_model(external)
    for name, array in expected.items():
        np.testing.assert_array_equal(loaded.graph.initializers[name].const_value.numpy(), array)


def test_data_of_a_constant_is_looked_at_too(tmp_path):
    tensor = numpy_helper.from_array(np.ones((4, 4), np.float32), "c")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    node = helper.make_node("Constant", [], ["y"], value=tensor)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 4])
    model = helper.make_model(helper.make_graph([node], "g", [], [y]))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match="outside its own folder"):
        load_model(tmp_path / "model.onnx")


def test_missing_data_is_named(external):
    external.with_name("model.onnx.data").unlink()
    with pytest.raises(ModelFileError, match=r"no file .*model\.onnx\.data"):
        load_model(external)


def test_truncated_data_is_named(external):
    os.truncate(external.with_name("model.onnx.data"), 20_000)
    with pytest.raises(ModelFileError, match=r"model\.onnx\.data is truncated"):
        load_model(external)


@pytest.mark.parametrize("changes", [{"offset": 10**12}, {"length": 10**15}, {"offset": -1}])
def test_offsets_outside_the_data_are_refused(external, changes):
    with pytest.raises(ModelFileError):
        load_model(external_entry(external, **changes))


@pytest.mark.parametrize("content", [b"", b"\x08\x07", b"hello world", bytes(100)])
def test_what_is_no_model_is_refused(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"model\.onnx is not an ONNX model"):
        load_model(path)


def test_sizes_count_external_data_and_parameters(inline, external):
    size = model_size(inline, external)
    data = external.with_name("model.onnx.data").stat().st_size
    assert size.reference_bytes == inline.stat().st_size
    assert size.candidate_bytes == external.stat().st_size + data
    numbers = sum(array.size for array in weights(inline).values())
    assert size.reference_parameters == size.candidate_parameters == numbers
    assert weight_bytes(load_model(external)) == 4 * numbers


def test_the_digest_covers_model_and_data(external):
    first = content_digest(external, load_model(external))
    assert content_digest(external, load_model(external)) == first
    data = external.with_name("model.onnx.data")
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    assert content_digest(external, load_model(external)) != first
