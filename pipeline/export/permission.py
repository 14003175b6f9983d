"""Which Python code a recipe runs, asked before anything is exported or loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from compress_onnx.pipeline.export.source import ModuleSource, resolve_source
from compress_onnx.pipeline.files.python_code import locate, require_permission
from compress_onnx.pipeline.recipe import MaskedData, PythonData, Recipe, RecoverySpec


def require_permission_of(recipe: Recipe, base_dir: Path, *, allow_code: bool) -> None:
    """Make sure that the code which ``recipe`` names is there, and may run.

    Args:
        recipe: in the folder ``base_dir``.
        base_dir: what relative paths are relative to.
        allow_code: whether the user allows code.

    Raises:
        RequestError: code is named and not allowed, or a file of it is missing or outside of the
            folder; or the source cannot be told.
        ModelFileError: the source is a local path without a model.
        MissingDependencyError: the package that holds the model is not installed.
    """
    names = list(_loaders(recipe))
    for name in names:
        locate(name, base_dir)
    source = resolve_source(recipe.source, base_dir)
    if isinstance(source, ModuleSource):
        names.insert(0, source.name)
    require_permission(names, base_dir, allow_code=allow_code)


def _loaders(recipe: Recipe) -> Iterator[str]:
    recovery = recipe.recovery or RecoverySpec()
    further = (*recipe.broader.values(), *recipe.domains.values())
    for data in (recipe.calibration, recipe.validation, *further, recovery.data, recovery.held_out):
        source = data.sentences if isinstance(data, MaskedData) else data
        if isinstance(source, PythonData):
            yield source.loader
