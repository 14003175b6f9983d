"""What graph_passes shows of itself, what loads with it, and which way imports go."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import compress_onnx.graph_passes as face

FOLDER = Path(face.__file__).parent
PACKAGE = "compress_onnx.graph_passes."
ABOVE = {
    "errors": {"rewriting", "planning", "allocation", "factorization", "sites"},
    "arrays": {"rewriting", "planning", "allocation", "factorization", "sites", "errors"},
    "validation_text": {"rewriting", "planning", "allocation", "factorization", "sites"},
    "allocation": {"rewriting", "planning", "factorization", "sites"},
    "factorization": {"rewriting", "planning", "allocation", "sites"},
    "sites": {"rewriting", "planning", "allocation", "factorization"},
    "planning": {"rewriting"},
    "rewriting": set(),
}


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    modules += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    return set(modules)


@pytest.mark.parametrize("name", face.__all__)
def test_every_name_of_the_face_is_there(name):
    assert getattr(face, name).__module__.startswith(PACKAGE)


def test_other_names_are_not():
    with pytest.raises(AttributeError, match="has no attribute 'LowRank'"):
        _ = face.LowRank


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*/*.py")) + sorted(FOLDER.glob("[a-z]*.py")))
def test_imports_go_downwards(path):
    room = path.relative_to(FOLDER).parts[0].removesuffix(".py")
    used = imports(path)
    assert not {m for m in used if m.startswith("compress_onnx.pipeline")}
    rooms = {m.removeprefix(PACKAGE).split(".")[0] for m in used if m.startswith(PACKAGE)}
    assert not rooms & ABOVE[room]


def test_factorization_comes_without_onnx():
    code = (
        f"import sys, {PACKAGE}factorization; assert not {{'onnx', 'onnx_ir'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
