"""Tell what a recipe's ``source.model`` is.

In this order, unless ``kind`` decides:

1. ``onnx``: a path that ends in ``.onnx``, or any existing file;
2. ``module``: ``MODULE:FACTORY``;
3. ``huggingface``: an existing folder with a ``config.json``, else anything that has the form of
   a hub id.

``package:NAME/PATH`` stands for a path inside an installed Python package, which is located but
never imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from compress_onnx.graph_passes.errors import MissingDependencyError, ModelFileError, RequestError
from compress_onnx.pipeline.files.python_code import is_module_function
from compress_onnx.pipeline.recipe import SourceSpec

_PACKAGE_PREFIX = "package:"
_HUB_ID = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)?")


@dataclass(frozen=True)
class OnnxSource:
    """An ``.onnx`` file."""

    path: Path


@dataclass(frozen=True)
class ModuleSource:
    """A callable, named ``MODULE:FACTORY``."""

    name: str


@dataclass(frozen=True)
class FolderSource:
    """A local folder in the hub's layout."""

    folder: Path


@dataclass(frozen=True)
class HubSource:
    """A model of the Hugging Face hub."""

    repo_id: str


Source = OnnxSource | ModuleSource | FolderSource | HubSource


def resolve_source(spec: SourceSpec, base_dir: Path) -> Source:
    """Find out what ``spec`` names; only looks at the file system.

    Raises:
        RequestError: it has none of the forms that are understood.
        ModelFileError: it is a local path without a model.
        MissingDependencyError: the package it is in is not installed.
    """
    path = _local_path(spec.model, base_dir)
    kinds = tuple(_RESOLVERS) if spec.kind == "auto" else (spec.kind,)
    for kind in kinds:
        source = _RESOLVERS[kind](spec.model, path)
        if source is not None:
            return source
    wanted = "a model" if spec.kind == "auto" else f"a source of kind {spec.kind!r}"
    raise RequestError(
        f"{spec.model!r} is not {wanted}: give an .onnx file, an existing folder with a "
        "config.json, a hub id, package:NAME/FOLDER or MODULE:FACTORY"
    )


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the form of a hub id."""
    return _HUB_ID.fullmatch(name) is not None


def _local_path(model: str, base_dir: Path) -> Path:
    if model.startswith(_PACKAGE_PREFIX):
        return _path_in_package(model)
    return base_dir / Path(model).expanduser()


def _path_in_package(model: str) -> Path:
    name, _, inner = model.removeprefix(_PACKAGE_PREFIX).partition("/")
    # Looking for a dotted name would import its parents.
    if not name.isidentifier() or ".." in Path(inner).parts:
        raise RequestError(f"{model!r} is not of the form package:NAME/FOLDER")
    package = find_spec(name)
    if package is None or not package.submodule_search_locations:
        raise MissingDependencyError(
            f"the Python package {name} is not installed: install it to use {model!r}"
        )
    for root in package.submodule_search_locations:
        if (path := Path(root, inner)).exists():
            return path
    raise ModelFileError(f"the Python package {name} has no {inner!r}: look into {root}")


def _onnx(_model: str, path: Path) -> Source | None:
    return OnnxSource(path) if path.suffix == ".onnx" or path.is_file() else None


def _module(model: str, _path: Path) -> Source | None:
    return ModuleSource(model) if is_module_function(model) else None


def _huggingface(model: str, path: Path) -> Source | None:
    if path.is_dir():
        # Of a sentence encoder, the configuration may lie in a folder of the transformer's own.
        if not any((path / name).is_file() for name in ("config.json", "modules.json")):
            raise ModelFileError(
                f"{path} has no config.json: give a folder in the Hugging Face hub's layout, or "
                "the .onnx file itself"
            )
        return FolderSource(path)
    return HubSource(model) if is_hub_id(model) else None


_RESOLVERS: dict[str, Callable[[str, Path], Source | None]] = {
    "onnx": _onnx,
    "module": _module,
    "huggingface": _huggingface,
}
