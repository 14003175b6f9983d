"""Functions in Python code that a recipe names: where they are, and whether they may run.

=====================  =========================================================================
``PATH.py:FUNCTION``   a file in the recipe's folder or below; what lies beside the file is
                       imported relatively (``from .other import name``)
``MODULE:FUNCTION``    a module, imported as from a script in the recipe's folder or in the
                       current one
=====================  =========================================================================

Such code can do whatever the user can. A recipe may come from anywhere, so that its code is only
run where the user allows it.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import cast

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.pipeline.runtime.session import one_line

_FUNCTION = r":(?P<function>[^\W\d]\w*)"
_IN_MODULE = re.compile(r"(?P<module>[^\W\d]\w*(?:\.[^\W\d]\w*)*)" + _FUNCTION)
_IN_FILE = re.compile(r"(?P<path>[^:]*?(?P<stem>[^\W\d]\w*)\.py)" + _FUNCTION)


@dataclass(frozen=True)
class NamedFunction:
    """A function that was looked for, not yet imported.

    Attributes:
        name: as it is written in the recipe.
        folder: the recipe's.
        module: the module's name; of a file, that without ``.py``.
        function: the function's name in it.
        file: the file; None for a module.
    """

    name: str
    folder: Path
    module: str
    function: str
    file: Path | None = None


def is_module_function(name: str) -> bool:
    """Whether ``name`` has the form ``MODULE:FUNCTION``."""
    return _IN_MODULE.fullmatch(name) is not None


def locate(name: str, folder: Path) -> NamedFunction:
    """Find out what ``name`` means in a recipe in ``folder``; only looks at the file system.

    Raises:
        RequestError: it has neither form, or the file is missing or outside of ``folder``.
    """
    if match := _IN_FILE.fullmatch(name):
        file = (folder / match["path"]).resolve()
        if not file.is_relative_to(folder.resolve()):
            raise RequestError(f"{name}: the file must be in the recipe's folder {folder}")
        if not file.is_file():
            raise RequestError(f"{name}: there is no file {file}")
        return NamedFunction(name, folder, match["stem"], match["function"], file)
    if match := _IN_MODULE.fullmatch(name):
        return NamedFunction(name, folder, match["module"], match["function"])
    raise RequestError(f"{name!r} is no function: write PATH.py:FUNCTION or MODULE:FUNCTION")


def require_permission(names: Sequence[str], folder: Path, *, allow_code: bool) -> None:
    """Make sure that the functions ``names`` of a recipe in ``folder`` may run.

    Raises:
        RequestError: there are some, and ``allow_code`` is not set.
    """
    if names and not allow_code:
        raise RequestError(
            f"this runs Python code, {', '.join(dict.fromkeys(names))} (folder {folder}): "
            "read it, and add --allow-code if you trust it"
        )


@contextmanager
def imported(found: NamedFunction, *, allow_code: bool) -> Iterator[Callable[..., object]]:
    """Import the function ``found``, which is to be called inside of the context.

    Inside, a module may import what lies beside it.

    Raises:
        RequestError: it may not run, cannot be imported, or is not there.
    """
    require_permission([found.name], found.folder, allow_code=allow_code)
    before = sys.path.copy()
    if found.file is None:
        sys.path[:0] = [str(folder.resolve()) for folder in (found.folder, Path.cwd())]
    try:
        yield _function(found)
    finally:
        sys.path[:] = before


def _function(found: NamedFunction) -> Callable[..., object]:
    module = found.module if found.file is None else f"{_package(found.file.parent)}.{found.module}"
    try:
        function = getattr(importlib.import_module(module), found.function, None)
    except (ImportError, SyntaxError) as error:
        raise RequestError(f"cannot import {found.name}: {one_line(error)}") from error
    if not callable(function):
        raise RequestError(f"{found.name}: there is no function {found.function}")
    return cast("Callable[..., object]", function)


def _package(folder: Path) -> str:
    """A package of the files in ``folder``, under a name that no other module has."""
    name = f"_recipe_code_{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}"
    if name not in sys.modules:
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    return name
