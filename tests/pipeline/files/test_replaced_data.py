"""The data file of a replaced model goes, if it was this tool's and nobody else reads it."""

from __future__ import annotations

import os
import shutil

import pytest
import small_models as small

from compress_onnx.graph_passes.errors import ModelFileError, OutputError
from compress_onnx.pipeline.files.model_file import (
    data_files,
    load_model,
    referred_files,
    save_model,
    was_written_here,
)


@pytest.fixture
def source(tmp_path):
    def at(seed):
        return load_model(small.save(small.perceptron(seed), tmp_path / f"source-{seed}.onnx"))

    return at


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out" / "model.onnx"


def names(output):
    return sorted(path.name for path in output.parent.iterdir())


def test_a_sequence_of_runs_leaves_one_data_file(source, output):
    for seed in range(3):
        save_model(source(seed), output, external_data=True)
        (data,) = data_files(load_model(output))
        assert names(output) == ["model.onnx", data.name]
    save_model(source(3), output, external_data=False)
    assert names(output) == ["model.onnx"]


def test_the_same_content_again_keeps_its_data(source, output):
    for _ in range(2):
        save_model(source(0), output, external_data=True)
    assert [data.exists() for data in data_files(load_model(output))] == [True]


def test_data_under_another_name_stays(source, output):
    output.parent.mkdir()
    small.save_external(small.perceptron(), output)
    save_model(source(1), output, external_data=True)
    assert "model.onnx.data" in names(output)


def test_data_that_a_copy_reads_stays(source, output):
    save_model(source(0), output, external_data=True)
    copy = output.with_name("copy.onnx")
    shutil.copyfile(output, copy)
    save_model(source(1), output, external_data=True)
    load_model(copy)
    assert len(names(output)) == 4


def test_data_stays_while_a_model_beside_it_cannot_be_read(source, output):
    save_model(source(0), output, external_data=True)
    (data,) = data_files(load_model(output))
    output.with_name("unknown.onnx").write_bytes(b"not a model")
    save_model(source(1), output, external_data=True)
    assert data.exists()


def test_data_that_a_run_is_about_to_publish_stays(source, output):
    # Such a run has its model under a hidden name, and refers to what has the same content.
    save_model(source(0), output, external_data=True)
    (data,) = data_files(load_model(output))
    shutil.copyfile(output, output.with_name(f".model.host-{os.getpid()}-0.tmp.onnx"))
    save_model(source(1), output, external_data=True)
    assert data.exists()


def test_a_failed_run_keeps_the_data_of_the_model_in_place(source, output):
    save_model(source(0), output, external_data=True)
    before = small.listing(output.parent)

    def refuse(_path):
        raise ModelFileError("no")

    with pytest.raises(ModelFileError):
        save_model(source(1), output, external_data=True, check=refuse)
    assert small.listing(output.parent) == before


def test_what_is_written_is_marked_and_nothing_else(source, output, tmp_path):
    model = source(0)
    assert not was_written_here(tmp_path / "source-0.onnx")
    save_model(model, output)
    assert was_written_here(output)
    assert not was_written_here(tmp_path / "missing.onnx")
    output.write_bytes(b"not a model")
    assert not was_written_here(output)


def test_referred_files_are_named_whether_they_exist_or_not(tmp_path):
    path = small.save_external(small.perceptron(), tmp_path / "model.onnx", "weights.bin")
    (tmp_path / "weights.bin").unlink()
    assert referred_files(path) == [tmp_path / "weights.bin"]


@pytest.mark.parametrize("name", ["model.json", "model.textproto"])
def test_whatever_the_name_a_model_is_protobuf(source, tmp_path, name):
    save_model(source(0), tmp_path / name)
    load_model(tmp_path / name)


def test_a_file_in_the_way_is_an_output_error(source, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        save_model(source(0), tmp_path / "file" / "model.onnx")
