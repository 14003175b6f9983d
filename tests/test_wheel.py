"""The wheel and the sdist: what they hold, and that what is installed runs outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest
import small_models as small

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PACKAGES = ("graph_passes", "pipeline")
SUFFIXES = {".py", ".jinja", ".css", ".js", ".typed"}

IMPORT_ALL = """
import importlib, pkgutil, sys
import compress_onnx
names = [m.name for m in pkgutil.walk_packages(compress_onnx.__path__, "compress_onnx.")]
for name in names:
    if not name.endswith(("__main__", "olive_passes")):  # that Olive imports, and it alone
        importlib.import_module(name)
strange = [
    name
    for name, module in sys.modules.items()
    if name.startswith("compress_onnx") and not module.__file__.startswith(sys.argv[1])
]
assert not strange, strange
assert not {"pipeline", "graph_passes"} & set(sys.modules)
print(len(names))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the sdist, and the wheel that was built out of it."""
    folder = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def site(built, tmp_path_factory) -> Path:
    """Where the wheel is installed."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", folder, next(built.glob("*.whl"))], check=True)
    return folder


@pytest.fixture
def place(tmp_path) -> Path:
    """A working folder whose own modules have the names of ours."""
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('not this one')\n")
    return tmp_path


def run(place, *command, path):
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        check=False,
        cwd=place,
        env={**environment, "PYTHONPATH": os.pathsep.join(map(str, path))},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def sources() -> set[str]:
    """What belongs into the wheel, as the checkout has it."""
    found = {"compress_onnx/__init__.py", "compress_onnx/__main__.py", "compress_onnx/py.typed"}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and path.suffix in SUFFIXES:
                found.add(f"compress_onnx/{path.relative_to(ROOT).as_posix()}")
    return found


def test_the_wheel_holds_the_package_and_nothing_else(built):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        members = {member for member in archive.namelist() if ".dist-info/" not in member}
        links = [m.filename for m in archive.infolist() if m.external_attr >> 28 == 0o12]
    assert members == sources()
    assert not links


def test_the_sdist_holds_files_in_the_place_of_links(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        members = archive.getmembers()
    assert not [member.name for member in members if member.issym() or member.islnk()]
    inside = {str(PurePosixPath(*PurePosixPath(member.name).parts[1:])) for member in members}
    assert sources() <= inside
    assert not any(name.startswith(("models", "docs", "tests")) for name in inside)
    # What a recipe for conda builds from, and has to ship.
    assert {"LICENSE", "README.md", "pyproject.toml", "CITATION.cff", "CHANGELOG.md"} <= inside


@pytest.mark.parametrize(
    ("program", "options", "kinds"),
    [("twine", ("check", "--strict"), ("*",)), ("check_wheel_contents", (), ("*.whl",))],
)
def test_an_index_takes_it(built, program, options, kinds):
    pytest.importorskip(program, reason="needs the dev extra")
    files = [path for kind in kinds for path in sorted(built.glob(kind))]
    assert files
    command = [sys.executable, "-m", program, *options, *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_licence_goes_along(built):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        (name,) = [m for m in archive.namelist() if m.endswith(".dist-info/licenses/LICENSE")]
        assert archive.read(name) == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize("named", ["by the working folder", "by PYTHONPATH"])
def test_every_module_imports_beside_others_of_the_same_names(site, place, named):
    path = [site] if named == "by the working folder" else [place, site]
    count = run(place, sys.executable, "-c", IMPORT_ALL, site, path=path)
    assert int(count) > 100


def test_the_command_runs_beside_modules_of_the_same_names(site, place):
    small.save(small.perceptron(), place / "model.onnx")
    compress = ["compress", "model.onnx", "-o", "small.onnx", "--method", "svd"]
    for start in ([site / "bin" / "compress-onnx"], [sys.executable, "-m", "compress_onnx"]):
        run(place, *start, *compress, path=[place, site])
        assert (place / "small.onnx").stat().st_size < (place / "model.onnx").stat().st_size
        (place / "small.onnx").unlink()
