"""What every kind of source ends in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compress_onnx.pipeline.results import ExportReport


@dataclass(frozen=True)
class SentencePooling:
    """How the encoder's own library makes one vector of a sentence's tokens.

    Attributes:
        modes: sentence-transformers' names: ``mean``, ``cls``, ``max``, ``mean_sqrt_len``,
            ``weightedmean``, ``lasttoken``. The vectors of several modes are put side by side.
        normalized: whether the vector is then scaled to length 1.
    """

    modes: tuple[str, ...]
    normalized: bool = False

    def __str__(self) -> str:
        return " and ".join(self.modes) + (", then normalize" if self.normalized else "")


@dataclass(frozen=True)
class ExportedModel:
    """An ONNX model and what belongs to it.

    Attributes:
        path: the ``.onnx`` file; the original one where the source already was ONNX.
        report: where it came from, and how close it is to PyTorch.
        assets: configuration, tokenizer and preprocessor files that a bundle needs beside it, and
            the texts of licences.
        asset_root: the folder below which ``assets`` keep their places; None where all lie flat.
        tokenizer_dir: the folder that the tokenizer or image processor loads from; None where
            there is neither.
        pooling: of a sentence encoder, which the model itself does not do; None where the source
            declares none.
        notes: what a reader of the report must know, such as a lowered opset.
        card: the model card of the source; None where it has none.
    """

    path: Path
    report: ExportReport
    assets: tuple[Path, ...] = ()
    asset_root: Path | None = None
    tokenizer_dir: Path | None = None
    pooling: SentencePooling | None = None
    notes: tuple[str, ...] = ()
    card: Path | None = None
