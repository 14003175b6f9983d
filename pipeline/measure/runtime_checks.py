"""Does the runtime itself say the same twice, at every level, and as ONNX's own evaluator does?

These hold a model against itself: what differs here is ONNX Runtime's doing, not the graph's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnx.reference

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.pipeline.measure.relative_error import relative_error
from compress_onnx.pipeline.results import RuntimeChecks
from compress_onnx.pipeline.runtime.session import (
    SessionSpec,
    one_line,
    open_session,
    run,
)

_LEVELS = get_args(SessionSpec.model_fields["optimization"].annotation)
_RUNS = 3


def check_runtime(
    model: Path, feeds: Mapping[str, Array], spec: SessionSpec | None = None
) -> RuntimeChecks:
    """Run ``model`` in several ways that should not matter, on the same feeds.

    Raises:
        ModelFileError: the model cannot be loaded or run.
    """
    spec = spec or SessionSpec()
    plain = run(open_session(model, spec.model_copy(update={"optimization": "off"})), feeds)
    session = open_session(model, spec)
    first = run(session, feeds)
    alone = run(open_session(model, spec.model_copy(update={"threads": 1})), feeds)
    levels = {
        level: _worst(plain, run(open_session(model, _at(spec, level)), feeds))
        for level in _LEVELS
        if level != "off"
    }
    error, reason = _evaluator(model, feeds, plain)
    return RuntimeChecks(
        runs=max(_worst(first, run(session, feeds)) for _ in range(_RUNS)),
        threads=_worst(first, alone),
        levels=levels,
        evaluator=error,
        no_evaluator=reason,
    )


def _at(spec: SessionSpec, level: str) -> SessionSpec:
    return spec.model_copy(update={"optimization": level})


def _evaluator(
    model: Path, feeds: Mapping[str, Array], expected: Mapping[str, Array]
) -> tuple[float | None, str | None]:
    """The difference from ``onnx.reference``, or why it cannot run the model."""
    try:
        evaluator = onnx.reference.ReferenceEvaluator(str(model))
        found = list(evaluator.run(list(expected), dict(feeds)))
    except Exception as error:  # NotImplementedError, or whatever an operator of its raises
        return None, one_line(error)
    return _worst(expected, dict(zip(expected, map(np.asarray, found), strict=True))), None


def _worst(one: Mapping[str, Array], other: Mapping[str, Array]) -> float:
    """The largest relative difference over outputs."""
    return max((relative_error(one[name], other[name]) for name in one), default=0.0)
