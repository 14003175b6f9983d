"""The optional packages that an export needs."""

from __future__ import annotations

from importlib.util import find_spec

from compress_onnx.graph_passes.errors import MissingDependencyError


def require_export_extra(*packages: str) -> None:
    """Check that ``packages`` (top-level names) are installed, without importing them.

    Raises:
        MissingDependencyError: one is not; the message says how to install it.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise MissingDependencyError(
            f'exporting this model needs {", ".join(missing)}: pip install "compress-onnx[export]"'
        )
