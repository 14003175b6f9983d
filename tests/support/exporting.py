"""Exporting into a temporary folder, and looking at what came of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx

from compress_onnx.pipeline.export import ExportedModel, export
from compress_onnx.pipeline.recipe import SourceSpec
from compress_onnx.pipeline.runtime.session import open_session


def export_to(tmp_path: Path, model: str | Path, **settings: object) -> ExportedModel:
    folder = tmp_path / "out"
    folder.mkdir()
    spec = SourceSpec.model_validate({"model": str(model)} | settings)
    return export(spec, folder, base_dir=tmp_path, allow_code=True)


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def axes(path: Path) -> dict[str, tuple[int | str, ...]]:
    session = open_session(path)
    return {v.name: tuple(v.shape) for v in (*session.get_inputs(), *session.get_outputs())}
