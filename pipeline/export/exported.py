"""What every kind of source ends in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compress_onnx.pipeline.results import ExportReport


@dataclass(frozen=True)
class ExportedModel:
    """An ONNX model and what belongs to it.

    Attributes:
        path: the ``.onnx`` file; the original one where the source already was ONNX.
        report: where it came from, and how close it is to PyTorch.
        assets: configuration, tokenizer and preprocessor files that a bundle needs beside it.
        tokenizer_dir: the folder that the tokenizer or image processor loads from; None where
            there is neither.
        notes: what a reader of the report must know, such as a lowered opset.
    """

    path: Path
    report: ExportReport
    assets: tuple[Path, ...] = ()
    tokenizer_dir: Path | None = None
    notes: tuple[str, ...] = ()
