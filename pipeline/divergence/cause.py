"""What is different where two graphs part: the likely cause, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx

from compress_onnx.graph_passes.arrays import Array, Float64
from compress_onnx.pipeline.divergence.locate import Comparison, Met, Parting
from compress_onnx.pipeline.divergence.trace import Trace
from compress_onnx.pipeline.measure.relative_error import relative_error

_HALF_LIMIT = 65504
# Two weights that differ by less are one weight, rounded.
_ROUNDED = 0.05
_SAME = 1e-6
# A node that leaves its inputs' error so nearly as it was did not cause it.
_GROWING = 0.1
_RESHAPING = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}


def likely_cause(comparison: Comparison, parting: Parting) -> str:
    """The first explanation that fits, from the surest to the vaguest."""
    for explanation in (_overflow, _same_operator, _lost_node, _extra_node):
        if (told := explanation(comparison, parting)) is not None:
            return told
    if parting.reference is None:
        return f"the candidate's {parting.candidate.op_type} has nothing like it in the reference"
    return (
        f"the candidate has {parting.candidate.op_type} where the reference has "
        f"{parting.reference.op_type}"
    )


def _overflow(comparison: Comparison, parting: Parting) -> str | None:
    array = comparison.candidate.values[parting.value]
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return None
    if parting.reference_value is not None:
        expected = comparison.reference.values[parting.reference_value]
        if not np.isfinite(expected).all():
            return None
        largest = float(np.abs(expected.astype(np.float64)).max(initial=0.0))
        if array.dtype == np.float16:
            return (
                f"overflow of float16: the reference has values up to {largest:.4g} here, and "
                f"float16 ends at {_HALF_LIMIT}"
            )
    return f"infinity or NaN in {array.dtype}, where the reference has numbers"


def _same_operator(comparison: Comparison, parting: Parting) -> str | None:
    ours, theirs = parting.candidate, parting.reference
    if theirs is None or ours.op_type != theirs.op_type or ours.domain != theirs.domain:
        return None
    if differing := _attributes(ours, theirs):
        return differing
    told = _swapped(parting.met, ours, theirs) or _operand(comparison, parting.met, ours, theirs)
    if told is not None:
        return told
    if any(_dtype(comparison.candidate, ours) == kind for kind in (np.float16, np.int8, np.uint8)):
        return f"rounding: the candidate computes {ours.op_type} in fewer bits"
    if parting.after is not None and parting.before > _GROWING * parting.after:
        return "no single node: the error grows step by step, and here it is more than is allowed"
    return f"the same {ours.op_type} of the same values gives another result: the runtime's doing"


def _attributes(ours: onnx.NodeProto, theirs: onnx.NodeProto) -> str | None:
    one, other = (
        {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if not _is_graph(a)}
        for node in (ours, theirs)
    )
    for name in sorted(one.keys() | other.keys()):
        mine, their = one.get(name), other.get(name)
        if isinstance(mine, onnx.TensorProto) or isinstance(their, onnx.TensorProto):
            continue
        close = isinstance(mine, float) and isinstance(their, float) and math.isclose(mine, their)
        if mine != their and not close:
            return f"the attribute {name} of {ours.op_type} is {_text(mine)}, not {_text(their)}"
    return None


def _swapped(met: Mapping[str, Met], ours: onnx.NodeProto, theirs: onnx.NodeProto) -> str | None:
    mine = [met[name].name if name in met else name for name in ours.input]
    their = list(theirs.input)
    if mine != their and sorted(mine) == sorted(their):
        return f"the inputs of {ours.op_type} are swapped"
    return None


def _operand(
    comparison: Comparison,
    met: Mapping[str, Met],
    ours: onnx.NodeProto,
    theirs: onnx.NodeProto,
) -> str | None:
    for place, (mine, their) in enumerate(zip(ours.input, theirs.input, strict=False)):
        if mine in comparison.candidate.varying:
            if mine in met and their in comparison.reference.varying:
                found = relative_error(
                    comparison.reference.values[their], comparison.candidate.values[mine]
                )
                if found > comparison.tolerance:
                    return (
                        f"input {place} of {ours.op_type} is the reference's {met[mine].name!r}, "
                        f"not {their!r}"
                    )
            continue
        if mine and their and their not in comparison.reference.varying:
            told = _constants(
                comparison.reference.values.get(their), comparison.candidate.values.get(mine)
            )
            if told is not None:
                return f"input {place} of {ours.op_type} ({mine!r}) {told}"
    if len(ours.input) != len(theirs.input):
        more, fewer = (theirs, "lost") if len(theirs.input) > len(ours.input) else (ours, "extra")
        extra = more.input[min(len(ours.input), len(theirs.input))]
        return f"{ours.op_type} has {'an ' if fewer == 'extra' else ''}{fewer} input: {extra!r}"
    return None


def _constants(reference: Array | None, candidate: Array | None) -> str | None:
    """What became of a stored array; None where it is the same."""
    if reference is None or candidate is None:
        return None
    assert {reference.dtype.kind, candidate.dtype.kind} <= set("fiub")
    one, other = reference.astype(np.float64), candidate.astype(np.float64)
    if one.size != other.size:
        return f"has the shape {list(candidate.shape)}, not {list(reference.shape)}"
    if one.size <= 8 and not np.array_equal(one.ravel(), other.ravel()):
        return f"is {_text(candidate.ravel().tolist())}, not {_text(reference.ravel().tolist())}"
    error = relative_error(one, other)
    if error <= _SAME:
        return None
    if one.ndim == 2 and relative_error(one.T, other) <= _SAME:
        return "is transposed"
    return _changed(one.ravel(), other.ravel(), error)


def _changed(one: Float64, other: Float64, error: float) -> str:
    if not other.any():
        return "is zero"
    limit = float(np.abs(other).max())
    if limit < np.abs(one).max() and np.allclose(np.clip(one, -limit, limit), other, rtol=1e-5):
        return f"is clipped to ±{limit:.4g}"
    factor = float(one @ other) / float(one @ one) if one.any() else 0.0
    if factor and np.linalg.norm(other - factor * one) <= _SAME * np.linalg.norm(other):
        return f"is {factor:.6g} times the reference's"
    if np.sort(one).shape == np.sort(other).shape and np.allclose(np.sort(one), np.sort(other)):
        return "holds the reference's numbers in another order"
    if error < _ROUNDED:
        return f"differs from the reference's by {error:.2g}: rounded"
    return f"is another one (relative difference {error:.2g})"


def _lost_node(comparison: Comparison, parting: Parting) -> str | None:
    """The reference has one more node here, whose successor is the candidate's."""
    theirs = parting.reference
    if theirs is None or parting.reference_value is None:
        return None
    after = {node.op_type for node in _successors(comparison.reference, parting.reference_value)}
    if parting.candidate.op_type not in after:
        return None
    return f"a lost {_described(comparison.reference, theirs)}"


def _extra_node(comparison: Comparison, parting: Parting) -> str | None:
    """The candidate has one more node here, whose successor is the reference's."""
    if parting.reference is None:
        return None
    after = {node.op_type for node in _successors(comparison.candidate, parting.value)}
    if parting.reference.op_type not in after:
        return None
    return f"an extra {_described(comparison.candidate, parting.candidate)}"


def _described(trace: Trace, node: onnx.NodeProto) -> str:
    stored = [name for name in node.input if name and name not in trace.varying]
    if node.op_type == "Add":
        return f"bias ({stored[0]!r})" if stored else "Add of two values: a residual"
    if stored:
        return f"{node.op_type} by {stored[0]!r}"
    return node.op_type


def _successors(trace: Trace, value: str) -> Iterator[onnx.NodeProto]:
    """The nodes that read ``value``, perhaps in another shape."""
    for node in trace.consumers(value):
        if node.op_type in _RESHAPING and node.input[0] == value:
            yield from _successors(trace, node.output[0])
        else:
            yield node


def _dtype(trace: Trace, node: onnx.NodeProto) -> np.dtype[np.generic]:
    return trace.values[node.output[0]].dtype


def _is_graph(attribute: onnx.AttributeProto) -> bool:
    return attribute.type in {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float):
        return f"{value:.6g}"
    return "the default" if value is None else str(value)
