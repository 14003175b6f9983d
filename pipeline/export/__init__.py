"""Get one ONNX model out of whatever a recipe names as its source.

A Hugging Face model or a PyTorch module is exported and compared with PyTorch on made-up inputs
of two sizes; an ``.onnx`` file is checked and used where it lies. Only the first two need the
``export`` extra, and a module imports it no earlier than it runs.
"""

from __future__ import annotations

from pathlib import Path

from compress_onnx.pipeline.export.exported import ExportedModel
from compress_onnx.pipeline.export.huggingface import export_huggingface
from compress_onnx.pipeline.export.module import export_module
from compress_onnx.pipeline.export.onnx_file import use_onnx_file
from compress_onnx.pipeline.export.source import ModuleSource, OnnxSource, resolve_source
from compress_onnx.pipeline.recipe import SourceSpec

__all__ = ["ExportedModel", "export"]


def export(
    source: SourceSpec, folder: Path, *, base_dir: Path, seed: int = 0, allow_code: bool = False
) -> ExportedModel:
    """Export ``source`` into ``folder``, or refer to it where it already is ONNX.

    Args:
        source: what to export and how.
        folder: an existing, empty folder that takes the exported files.
        base_dir: what relative paths in ``source`` are relative to.
        seed: fixes the made-up inputs, and the weights of a factory that draws them.
        allow_code: whether ``MODULE:FACTORY`` may run.

    Raises:
        RequestError: the source cannot be told, makes no sense with these options, or is code
            that may not run.
        ModelFileError: the model is missing, damaged or unsafe, cannot be exported, or its export
            computes something else than PyTorch.
        MissingDependencyError: the ``export`` extra, or the package that holds the model, is not
            installed.
    """
    found = resolve_source(source, base_dir)
    if isinstance(found, OnnxSource):
        return use_onnx_file(found.path, source.model)
    if isinstance(found, ModuleSource):
        return export_module(
            found, source, folder, base_dir=base_dir, seed=seed, allow_code=allow_code
        )
    return export_huggingface(found, source, folder, seed=seed)
