"""What a table has rows of: models that ONNX Runtime's own tools make, and ours.

Ours are written by the product itself (:mod:`pipeline.compress.forms`), as ``optimize`` tries them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
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

from compress_onnx.pipeline.compress.form_times import Speedups
from compress_onnx.pipeline.compress.forms import Forms
from compress_onnx.pipeline.compress.learn import Learned
from compress_onnx.pipeline.compress.rivals import RIVALS, quiet
from compress_onnx.pipeline.files.model_file import save_model
from compress_onnx.pipeline.files.original import Original
from compress_onnx.pipeline.recipe import OptimizeSpec, RecoverySpec
from compress_onnx.pipeline.recover.recover import Lessons
from compress_onnx.pipeline.runtime.samples import Samples

ORIGINAL = "original"
DYNAMIC = "dynamic int8"
SHARES = 0.75, 0.6, 0.5
"""Of the parameters of feed-forward networks, which are in proportion to their neurons."""

CALIBRATION = 300
"""How many samples other tools calibrate on: the number that NNCF takes by itself."""


class Row(NamedTuple):
    """A model of the table; ``build`` writes it."""

    name: str
    build: Callable[[Path], object]


def theirs(original: Original) -> Iterator[Row]:
    """The original, and what ONNX Runtime's tools make of it without data."""
    yield Row(ORIGINAL, lambda path: save_model(original.copy(), path))
    for name, write in RIVALS.items():
        yield Row(name, partial(write, original.path))


def calibrated(original: Original, samples: Samples) -> Row:
    """What ``quantize_static`` makes of the original."""
    return Row("static QDQ", partial(static_qdq, original.path, samples=samples))


def ours(learned: Learned, speedups: Speedups) -> Iterator[Row]:
    """The forms of the product, at all of the neurons and at a few shares.

    Args:
        learned: the model.
        speedups: times the models that forms are chosen by.
    """
    small = Forms(learned, OptimizeSpec(objective="size"), unfused=True)
    fast = Forms(learned, OptimizeSpec(), unfused=True, speedups=speedups)
    build = {f.name: f.build for forms in (small, fast) for f in forms.families()}
    yield Row(f"{ORIGINAL}, sums and norms apart", partial(build["neurons"], 1.0))
    yield Row("integers", partial(build["neurons, integers"], 1.0))
    for share in SHARES:
        fewer = f"{share:.0%} of the neurons"
        yield Row(fewer, partial(build["neurons"], share))
        yield Row(f"{fewer}, integers", partial(build["neurons, integers"], share))
    for numbers in "4-bit weights", "4-bit weights and embeddings":
        if f"neurons, {numbers}" in build:  # embeddings: where there are any
            yield Row(f"ours, {numbers}", partial(build[f"neurons, {numbers}"], 1.0))


def recovered(
    learned: Learned, speedups: Speedups, budget_s: float, lessons: Lessons | None
) -> Iterator[Row]:
    """The forms with fewer neurons and integers, trained through their rounding.

    Args:
        learned: the model.
        speedups: times the models that forms are chosen by.
        budget_s: how long each is trained.
        lessons: what on; the calibration samples where that is None.
    """
    forms = Forms(
        learned,
        OptimizeSpec(),
        unfused=True,
        recovery=RecoverySpec(budget=budget_s),
        lessons=lessons,
        speedups=speedups,
    )
    train = {family.name: family.recover for family in forms.families()}["neurons, integers"]
    assert train is not None
    for share in SHARES[1:]:
        name = f"{share:.0%} of the neurons, integers, recovered"
        yield Row(name, partial(train, share))


def compiled(learned: Learned) -> Iterator[Row]:
    """The forms of the product that OpenVINO reads best: integers as QDQ, and floats."""
    forms = Forms(learned, OptimizeSpec(), "openvino")
    build = {family.name: family.build for family in forms.families()}
    yield Row("integers", partial(build["neurons, integers"], 1.0))
    for share in SHARES:
        fewer = f"{share:.0%} of the neurons"
        yield Row(fewer, partial(build["neurons"], share))
        yield Row(f"{fewer}, integers", partial(build["neurons, integers"], share))


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
