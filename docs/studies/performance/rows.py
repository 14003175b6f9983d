"""What a table has rows of: models that ONNX Runtime's own tools make, and ours."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import onnx_ir as ir
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass
from compress_onnx.graph_passes.rewriting.embeddings import EmbeddingsPass
from compress_onnx.graph_passes.rewriting.unfused_norms import UnfuseNormsPass
from compress_onnx.pipeline.compress.integers import round_model
from compress_onnx.pipeline.compress.rivals import RIVALS, quiet
from compress_onnx.pipeline.compress.weight_only import round_weights
from compress_onnx.pipeline.files.model_file import save_model
from compress_onnx.pipeline.runtime.samples import Samples
from studies.performance.subject import Material

ORIGINAL = "original"
DYNAMIC = "dynamic int8"
SHARES = 0.75, 0.6, 0.5
"""Of the parameters of feed-forward networks."""

CALIBRATION = 300
"""How many samples other tools calibrate on: the number that NNCF takes by itself."""


class Row(NamedTuple):
    """A model of the table; ``build`` writes it."""

    name: str
    build: Callable[[Path], None]


def rows(material: Material, shares: Sequence[float] = SHARES) -> Iterator[Row]:
    """The original, what ONNX Runtime's tools make of it, and ours."""
    original = material.original
    yield Row(ORIGINAL, lambda path: save_model(original.copy(), path))
    for name, write in RIVALS.items():
        yield Row(name, partial(write, original.path))
    yield Row("static QDQ", lambda path: static_qdq(original.path, path, material.samples))
    yield Row(f"{ORIGINAL}, sums and norms apart", lambda path: _save(original.copy(), path))
    yield Row("ours, 4-bit weights", partial(_save_weight_only, material))
    yield Row("integers", lambda path: _save_rounded(material, original.copy(), path))
    for share in shares:
        fewer = f"{share:.0%} of the neurons"
        yield Row(fewer, partial(_save_thinned, material, share))
        yield Row(f"{fewer}, integers", partial(_save_thinned_and_rounded, material, share))


def static_qdq(model: Path, output: Path, samples: Samples) -> None:
    """Write what ``quantize_static`` makes of ``model``, by the ranges of ``samples``."""
    with quiet(f"quantize_static cannot read {model}"):
        quantize_static(
            model,
            output,
            _Reader(samples.take(CALIBRATION)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        save_model(ir.load(output), output)


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Samples as ONNX Runtime's tools ask for them: a batch a call, None at the end."""

    def __init__(self, samples: Samples) -> None:
        self._batches = samples.batches(1)

    def get_next(self) -> dict[str, Any] | None:
        with contextlib.suppress(StopIteration):
            return next(self._batches).feeds
        return None


def _save_thinned(material: Material, share: float, path: Path) -> None:
    _save(material.thinned(share), path)


def _save_thinned_and_rounded(material: Material, share: float, path: Path) -> None:
    _save_rounded(material, material.thinned(share), path)


def _save_rounded(material: Material, model: ir.Model, path: Path) -> None:
    _save_small(round_model(model, material.samples, material.settings).model, path)


def _save_weight_only(material: Material, path: Path) -> None:
    _save_small(round_weights(material.original, material.samples, material.settings).model, path)


def _save_small(model: ir.Model, path: Path) -> None:
    """With embedding tables of 8 bits."""
    EmbeddingsPass(8)(model)
    CleanupPass()(model)
    _save(model, path)


def _save(model: ir.Model, path: Path) -> None:
    UnfuseNormsPass()(model)
    save_model(model, path)
