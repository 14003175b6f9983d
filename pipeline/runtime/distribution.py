"""Which distribution provides ONNX Runtime; asked before the first ``import onnxruntime``.

``onnxruntime``, ``onnxruntime-gpu``, ``onnxruntime-openvino`` and others hold the same files. pip
installs any of them beside another, and the last one overwrites the first: what then runs is
neither. So exactly one may be installed, whichever it is.
"""

from __future__ import annotations

from importlib.metadata import Distribution, distributions
from importlib.util import find_spec

from compress_onnx.graph_passes.errors import MissingDependencyError

_MODULE = "onnxruntime"


def providing_distributions() -> list[str]:
    """The names of the installed distributions that hold the module ``onnxruntime``."""
    # importlib.metadata.packages_distributions reads the list of files of every distribution that
    # says nothing about its modules, which takes as long as the rest of a short command.
    return sorted({found.name for found in distributions() if _MODULE in _declared_modules(found)})


def require_one_runtime() -> None:
    """Make sure that ONNX Runtime is there, and whole.

    One that is importable without being a distribution, such as a build on the path, is left alone.

    Raises:
        MissingDependencyError: there is none, or several distributions overwrite each other.
    """
    names = providing_distributions()
    if len(names) > 1:
        raise MissingDependencyError(
            f"{' and '.join(names)} are installed, which overwrite each other: run "
            f"pip uninstall -y {' '.join(names)}, then install one of them again"
        )
    if not names and find_spec(_MODULE) is None:
        raise MissingDependencyError(
            'ONNX Runtime is not installed: pip install "compress-onnx[cpu]" (or [gpu], [openvino])'
        )


def _declared_modules(found: Distribution) -> list[str]:
    return (found.read_text("top_level.txt") or "").split()
