"""Two models value by value, as a report has it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import onnx

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.pipeline.divergence.cause import likely_cause
from compress_onnx.pipeline.divergence.locate import Comparison, Parting
from compress_onnx.pipeline.divergence.trace import Trace, module_path, trace
from compress_onnx.pipeline.measure.relative_error import relative_error
from compress_onnx.pipeline.results import (
    DepthError,
    Divergence,
    DivergentNode,
    InnerComparison,
)
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run


def compare_inside(
    reference: Path,
    candidate: Path,
    feeds: Mapping[str, Array],
    *,
    tolerance: float | None = None,
    spec: SessionSpec | None = None,
) -> InnerComparison:
    """Where ``candidate`` parts from ``reference``, and why.

    Both run without ONNX Runtime's optimizations, so that every value can be seen. Where they agree
    like that and not with the optimizations of ``spec``, these are the cause.

    Args:
        reference: the graph that is right.
        candidate: another one of the same model, with the same inputs and outputs.
        feeds: a few samples: all values of both graphs are kept in memory.
        tolerance: the largest relative difference of values that count as equal; None takes one
            between what rounding does and the error of the worst output.
        spec: how the models are run where it matters.

    Raises:
        ModelFileError: a model cannot be loaded or run.
    """
    spec = spec or SessionSpec()
    ours, theirs = (
        trace(model, feeds, provider=spec.provider, threads=spec.threads)
        for model in (reference, candidate)
    )
    comparison = Comparison(ours, theirs, tolerance)
    partings = filter(None, map(comparison.parting, comparison.wrong_outputs()))
    divergence = next((_told(comparison, parting) for parting in partings), None)
    for model, traced in ((candidate, theirs), (reference, ours)):
        divergence = divergence or _optimized_away(model, traced, feeds, spec, comparison.tolerance)
    return InnerComparison(
        tolerance=comparison.tolerance,
        divergence=divergence,
        depth=tuple(_depth(theirs, name, error) for name, error in comparison.profile()),
    )


def _depth(traced: Trace, name: str, error: float) -> DepthError:
    node = traced.node(name)
    assert node is not None  # only what nodes compute has a place
    return DepthError(
        tensor=name,
        operator=node.op_type,
        module=module_path(node),
        error=error if math.isfinite(error) else None,
    )


def _told(comparison: Comparison, parting: Parting) -> Divergence:
    theirs = None
    if parting.reference is not None and parting.reference_value is not None:
        theirs = _node(parting.reference_value, parting.reference)
    return Divergence(
        output=parting.output,
        candidate=_node(parting.value, parting.candidate),
        reference=theirs,
        error_before=parting.before,
        error_after=parting.after,
        cause=likely_cause(comparison, parting),
    )


def _optimized_away(
    model: Path,
    unoptimized: Trace,
    feeds: Mapping[str, Array],
    spec: SessionSpec,
    tolerance: float,
) -> Divergence | None:
    """What ONNX Runtime's optimizations change in a model that is right without them."""
    found = run(open_session(model, spec), feeds)
    errors = {name: relative_error(unoptimized.values[name], found[name]) for name in found}
    output = max(errors, key=errors.__getitem__)
    if errors[output] <= tolerance:
        return None
    return Divergence(
        output=output,
        candidate=_node(output, unoptimized.node(output)),
        reference=None,
        error_before=0.0,
        error_after=errors[output] if math.isfinite(errors[output]) else None,
        cause=f"ONNX Runtime's optimizations ({spec.optimization}) change what {model} computes",
    )


def _node(tensor: str, node: onnx.NodeProto | None) -> DivergentNode:
    """What computes ``tensor``; without names where that is no node."""
    return DivergentNode(
        tensor=tensor,
        operator=node.op_type if node else "",
        node=node.name if node else "",
        module=module_path(node) if node else "",
    )
