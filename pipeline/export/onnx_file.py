"""An ``.onnx`` file that somebody else exported: checked, then used where it lies."""

from __future__ import annotations

from pathlib import Path

from compress_onnx.pipeline.export.exported import ExportedModel
from compress_onnx.pipeline.files.model_file import load_model
from compress_onnx.pipeline.results import ExportReport


def use_onnx_file(path: Path, label: str) -> ExportedModel:
    """Refer to the ONNX model at ``path``; nothing is copied or changed.

    Args:
        path: the ``.onnx`` file.
        label: what the report calls the source.

    Raises:
        ModelFileError: the file is missing, is not an ONNX model, or its external data is missing,
            truncated or outside its folder.
    """
    opset = load_model(path).opset_imports[""]
    return ExportedModel(path, ExportReport(source=label, exporter="none", opset=opset))
