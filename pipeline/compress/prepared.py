"""Models of floats that are rounded next: they may be trained first, through that rounding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import onnx_ir as ir

from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.original import Original
from compress_onnx.pipeline.recipe import RecoverySpec
from compress_onnx.pipeline.recover.recover import Lessons, recover_in_memory
from compress_onnx.pipeline.recover.rounding import Rounding
from compress_onnx.pipeline.results import RecoveryReport


class Prepared(ABC):
    """A model before it is rounded.

    Attributes:
        model: the graph.
        source: what it was made of.
    """

    model: ir.Model
    source: Original

    @property
    @abstractmethod
    def rounding(self) -> Rounding:
        """What recovery has to know."""

    def recover(
        self, reference: Path, lessons: Lessons, recovery: RecoverySpec, settings: RunSettings
    ) -> RecoveryReport:
        """Train ``model`` in place to do what ``reference`` does once it is rounded.

        Args:
            reference: the original model.
            lessons: what it is trained on, and held against.
            recovery: budget, learning rate, what is trained and compared.
            settings: how the models are run.

        Raises:
            CompressOnnxError: as for :func:`~pipeline.recover.recover.recover`.
        """
        return recover_in_memory(
            reference,
            self.model,
            lessons,
            recovery,
            settings,
            data_folder=self.source.data_folder,
            rounding=self.rounding,
        )
