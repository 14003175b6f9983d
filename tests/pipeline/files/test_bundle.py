import hashlib
import json
import os
from pathlib import Path

import pytest

from compress_onnx.graph_passes.errors import ModelFileError, OutputError
from compress_onnx.pipeline.files.atomic import atomic_directory
from compress_onnx.pipeline.files.bundle import (
    copy_assets,
    is_bundle,
    verify_manifest,
    write_manifest,
)


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "bundle"
    (folder / "pictures").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(bytes(range(256)) * 1000)
    (folder / "report.json").write_text("{}")
    (folder / "pictures" / "a.png").write_bytes(b"png")
    (folder / "empty").write_bytes(b"")
    write_manifest(folder)
    return folder


def change_manifest(folder, change):
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_the_manifest_lists_every_file_sorted(bundle):
    document = json.loads((bundle / "manifest.json").read_text())
    assert (document["schema_version"], document["tool"]) == (1, "compress-onnx")
    assert list(document["files"]) == ["empty", "model.onnx", "pictures/a.png", "report.json"]
    assert document["files"]["pictures/a.png"] == {
        "sha256": hashlib.sha256(b"png").hexdigest(),
        "bytes": 3,
    }
    assert verify_manifest(bundle).model_dump() == document


def test_writing_it_again_changes_nothing(bundle):
    before = (bundle / "manifest.json").read_bytes()
    write_manifest(bundle)
    assert (bundle / "manifest.json").read_bytes() == before


def test_one_flipped_bit_is_found(bundle):
    path = bundle / "model.onnx"
    content = bytearray(path.read_bytes())
    content[100_000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"'model\.onnx' has changed"):
        verify_manifest(bundle)


def test_a_truncated_file_is_found(bundle):
    os.truncate(bundle / "model.onnx", 10)
    with pytest.raises(ModelFileError, match=r"'model\.onnx' has changed"):
        verify_manifest(bundle)


def test_a_missing_file_is_found(bundle):
    (bundle / "pictures" / "a.png").unlink()
    with pytest.raises(ModelFileError, match=r"'pictures/a\.png' is missing"):
        verify_manifest(bundle)


def test_an_extra_file_is_found(bundle):
    (bundle / "pictures" / "b.png").write_text("")
    with pytest.raises(ModelFileError, match=r"'pictures/b\.png' is not in the manifest"):
        verify_manifest(bundle)


def test_the_first_of_several_is_named(bundle):
    (bundle / "report.json").unlink()
    (bundle / "aaa").write_text("")
    with pytest.raises(ModelFileError, match="'aaa'"):
        verify_manifest(bundle)


@pytest.mark.parametrize("kind", ["file", "folder", "manifest"])
def test_links_are_refused(bundle, tmp_path, kind):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("x")
    if kind == "manifest":
        (bundle / "manifest.json").rename(outside / "manifest.json")
        (bundle / "manifest.json").symlink_to(outside / "manifest.json")
    else:
        (bundle / "link").symlink_to(outside / "secret" if kind == "file" else outside)
    with pytest.raises(ModelFileError, match="link"):
        verify_manifest(bundle)
    assert not is_bundle(bundle)
    if kind != "manifest":
        with pytest.raises(ModelFileError, match="link"):
            write_manifest(bundle)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_special_file_is_refused_instead_of_read(bundle):
    os.mkfifo(bundle / "pipe")
    with pytest.raises(ModelFileError, match="special file"):
        verify_manifest(bundle)


@pytest.mark.parametrize("path", ["../outside", "/etc/hostname", "pictures/../../outside"])
def test_a_manifest_cannot_reach_outside(bundle, tmp_path, path):
    (tmp_path / "outside").write_bytes(b"png")
    entry = {"sha256": hashlib.sha256(b"png").hexdigest(), "bytes": 3}
    change_manifest(bundle, lambda document: document["files"].update({path: entry}))
    with pytest.raises(ModelFileError, match="is missing"):
        verify_manifest(bundle)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a manifest"),
        ("[]", "not a manifest"),
        ('{"name": "a web app", "icons": []}', "not a manifest"),
        ('{"schema_version": 2, "tool": "compress-onnx", "version": "9", "files": {}}', "schema"),
    ],
)
def test_a_damaged_or_foreign_manifest_is_refused(bundle, text, message):
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(ModelFileError, match=message):
        verify_manifest(bundle)
    assert not is_bundle(bundle)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path):
    with pytest.raises(ModelFileError, match="cannot read the manifest"):
        verify_manifest(tmp_path)
    assert not is_bundle(tmp_path)
    assert not is_bundle(tmp_path / "missing")


def test_a_damaged_bundle_may_be_replaced_but_not_one_with_files_of_others(bundle):
    (bundle / "model.onnx").write_bytes(b"damaged")
    (bundle / "report.json").unlink()
    assert is_bundle(bundle)
    (bundle / "my-notes.txt").write_text("keep me")
    assert not is_bundle(bundle)
    with pytest.raises(OutputError), atomic_directory(bundle, replaceable=is_bundle):
        pytest.fail("the body must not run")
    assert (bundle / "my-notes.txt").read_text() == "keep me"


@pytest.mark.skipif(os.name != "posix", reason="names are Unicode elsewhere")
def test_a_name_that_json_cannot_hold_is_refused(bundle):
    Path(os.fsdecode(os.fsencode(bundle) + b"/\xff.bin")).write_text("")
    with pytest.raises(ModelFileError, match="UTF-8"):
        write_manifest(bundle)
    with pytest.raises(ModelFileError, match="UTF-8"):
        verify_manifest(bundle)


def test_assets_arrive_as_content(tmp_path):
    cache, out = tmp_path / "cache", tmp_path / "out"
    cache.mkdir()
    out.mkdir()
    (cache / "blob").write_text("{}")
    (cache / "config.json").symlink_to(cache / "blob")
    (cache / "vocab.txt").write_text("a b")
    copies = copy_assets([cache / "config.json", cache / "vocab.txt"], out)
    assert copies == [out / "config.json", out / "vocab.txt"]
    assert not copies[0].is_symlink()
    assert [copy.read_text() for copy in copies] == ["{}", "a b"]


def test_assets_that_are_missing_or_in_the_way_are_refused(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "model.onnx").write_text("asset")
    (out / "model.onnx").write_text("the model")
    with pytest.raises(OutputError, match=r"already has a file model\.onnx"):
        copy_assets([tmp_path / "model.onnx"], out)
    assert (out / "model.onnx").read_text() == "the model"
    with pytest.raises(ModelFileError, match="no such file"):
        copy_assets([tmp_path / "missing.json"], out)
    with pytest.raises(OutputError, match="cannot copy"):
        copy_assets([tmp_path / "model.onnx"], tmp_path / "nowhere")
