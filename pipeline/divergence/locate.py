"""The first node at which a candidate parts from its reference.

A value of one graph is *met* if the other graph has its equal: as many elements, in the same order,
and a relative difference within the tolerance. Names need not agree, nor shapes, nor does it matter
how a value came about: a chain of factors ends in a value that is met, whatever stands in between.
Where content finds nothing, the value of the same name tells the error, or the one that the same
operator computes in the same module.

From a wrong output, go back through values that are not met. Where all that a node reads is met,
that node errs::

    candidate   x ── MatMul ── Gelu* ── MatMul* ── y*        * not met
    reference   x ── MatMul ── Add* ── Gelu* ── MatMul* ── y*

The walk ends at Gelu in the candidate and at Add in the reference: a bias was lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx

from compress_onnx.graph_passes.arrays import Array, Float64
from compress_onnx.pipeline.divergence.trace import Trace, module_path
from compress_onnx.pipeline.measure.relative_error import is_float, relative_error

# What rounding alone makes of a value, by the coarsest numbers that a graph holds.
_ROUNDING = {"float32": 1e-6, "float16": 5e-4, "integers": 5e-3}
_INTEGER_OPERATORS = {
    "MatMulInteger",
    "DynamicQuantizeLinear",
    "DequantizeLinear",
    "QLinearMatMul",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "MatMulNBits",
}


@dataclass(frozen=True)
class Met:
    """The equal of a value in the other graph, and the relative difference."""

    name: str
    error: float


@dataclass(frozen=True)
class Parting:
    """Where two graphs part.

    Attributes:
        output: the wrong output that led there.
        candidate: the node of the candidate that errs.
        value: what it computes, the first that is not met.
        reference: the node that stands there in the reference; None where nothing could be told.
        reference_value: what that one computes.
        before: the largest relative error of what the candidate's node reads.
        after: the relative error of what it computes; None where the reference has no such value.
        met: of the values that the candidate's node reads, their equals in the reference.
    """

    output: str
    candidate: onnx.NodeProto
    value: str
    reference: onnx.NodeProto | None
    reference_value: str | None
    before: float
    after: float | None
    met: Mapping[str, Met]


class Comparison:
    """Two traces for the same feeds, and which of their values are met.

    Args:
        reference, candidate: traces.
        tolerance: the largest relative difference of values that are equal; None takes one between
            what rounding does and the error of the worst output.
    """

    def __init__(self, reference: Trace, candidate: Trace, tolerance: float | None = None) -> None:
        self.reference, self.candidate = reference, candidate
        self.tolerance = tolerance or self._tolerance()

    @cached_property
    def of_candidate(self) -> dict[str, Met]:
        """Which values of the candidate are met, by name."""
        return _matches(self.candidate, self.reference, self.tolerance)

    @cached_property
    def of_reference(self) -> dict[str, Met]:
        """Which values of the reference are met, by name."""
        return _matches(self.reference, self.candidate, self.tolerance)

    def wrong_outputs(self) -> list[str]:
        """Outputs that differ by more than the tolerance, the worst first."""
        errors = {
            name: relative_error(self.reference.values[name], self.candidate.values[name])
            for name in self.reference.outputs
        }
        wrong = [name for name, error in errors.items() if error > self.tolerance]
        return sorted(wrong, key=lambda name: -errors[name])

    def parting(self, output: str) -> Parting | None:
        """Where the graphs part on the way to ``output``; None where it has no node."""
        found = next(_ends(self.candidate, output, self.of_candidate), None)
        if found is None:
            return None
        node, value = found
        met = {
            name: self.of_candidate[name]
            for name in self.candidate.sources(node)
            if name in self.of_candidate
        }
        other = self._counterpart(output, node, met)
        theirs = other[1] if other else None
        expected = theirs or self._namesake(value)
        after = None
        if expected is not None:
            error = relative_error(self.reference.values[expected], self.candidate.values[value])
            after = error if math.isfinite(error) or not _finite(self.candidate, value) else None
        return Parting(
            output,
            node,
            value,
            other[0] if other else None,
            theirs,
            max((one.error for one in met.values()), default=0.0),
            after,
            met,
        )

    def profile(self) -> list[tuple[str, float]]:
        """Values of the candidate in the order of its nodes, with their relative errors.

        Of a value that is not met, the error is to the value of the same name, or of the same place
        in the model, where there is one.
        """
        found = []
        for node in self.candidate.graph.node:
            for name in node.output:
                if name not in self.candidate.varying:
                    continue
                if name in self.of_candidate:
                    found.append((name, self.of_candidate[name].error))
                elif (other := self._namesake(name)) and is_float(self.candidate.values[name]):
                    error = relative_error(
                        self.reference.values[other], self.candidate.values[name]
                    )
                    found.append((name, error))
        return found

    def _counterpart(
        self, output: str, node: onnx.NodeProto, met: Mapping[str, Met]
    ) -> tuple[onnx.NodeProto, str] | None:
        """The node of the reference where the same walk ends.

        Of several, one that reads the same, is the same operator, stands in the same module: in
        this order.
        """
        read = {one.name for one in met.values()}
        module = module_path(node)

        def likeness(end: tuple[onnx.NodeProto, str]) -> tuple[bool, bool, bool]:
            reads_the_same = not read.isdisjoint(self.reference.sources(end[0]))
            same_operator = end[0].op_type == node.op_type
            return reads_the_same, same_operator, module_path(end[0]) == module

        ends = _ends(self.reference, output, self.of_reference)
        return max(ends, key=likeness, default=None)  # the first of equals

    def _namesake(self, name: str) -> str | None:
        """The reference's value of the same name and size, or of the same place in the model."""
        names = _namesakes(self.candidate, self.reference, name)
        size = self.candidate.values[name].size
        return next((n for n in names if self.reference.values[n].size == size), None)

    def _tolerance(self) -> float:
        """Half way, on a scale of magnitudes, from rounding to the worst output's error."""
        rounding = max(_rounding(self.reference), _rounding(self.candidate))
        errors = (
            relative_error(self.reference.values[name], self.candidate.values[name])
            for name in self.reference.outputs
        )
        worst = max((min(error, 1.0) for error in errors), default=1.0)
        return max(rounding, math.sqrt(rounding * worst))


def _ends(
    trace: Trace, output: str, met: Mapping[str, Met]
) -> Iterator[tuple[onnx.NodeProto, str]]:
    """The nodes where the walk back from ``output`` ends, in the order of the graph."""
    reached, waiting = set(), [output]
    while waiting:
        name = waiting.pop()
        node = trace.node(name)
        if name in reached or name in met or node is None:
            continue
        reached.add(name)
        waiting += trace.sources(node)
    for name in sorted(reached, key=trace.producers.__getitem__):
        node = trace.node(name)
        assert node is not None
        if not reached.intersection(trace.sources(node)):
            yield node, name


def _namesakes(ours: Trace, theirs: Trace, name: str) -> list[str]:
    """The values of ``theirs`` that should be ``name`` of ``ours``: by name, then by place."""
    place = ours.places.get(name)
    placed = None if place is None else theirs.placed.get(place)
    return [n for n in (name, placed) if n is not None and n in theirs.varying]


def _matches(ours: Trace, theirs: Trace, tolerance: float) -> dict[str, Met]:
    """The values of ``ours`` that have an equal in ``theirs``, by name, with the nearest one."""
    by_size: dict[tuple[int, bool], list[str]] = {}
    for name in theirs.varying:
        array = theirs.values.get(name)
        if array is not None and _is_numeric(array):
            by_size.setdefault((array.size, is_float(array)), []).append(name)
    prints = {key: _prints(theirs, names) for key, names in by_size.items()}
    met = {}
    for name in ours.varying:
        array = ours.values.get(name)
        if array is None or not _is_numeric(array):
            continue
        key = (array.size, is_float(array))
        names = _nearest(array, by_size.get(key, []), prints.get(key))
        names += [n for n in _namesakes(ours, theirs, name) if n in by_size.get(key, [])]
        found = min(
            (Met(other, relative_error(theirs.values[other], array)) for other in names),
            key=lambda one: one.error,
            default=None,
        )
        if found is not None and found.error <= tolerance:
            met[name] = found
    return met


def _prints(trace: Trace, names: Sequence[str]) -> Float64:
    """Of each value two numbers, near for values that are near: ``[n, 2]``."""
    return np.array([_print(trace.values[name]) for name in names])


def _print(array: Array) -> tuple[float, float]:
    flat = np.nan_to_num(array.reshape(-1).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    direction = np.random.default_rng(flat.size).normal(size=flat.size)
    return float(np.linalg.norm(flat)), float(flat @ direction)


def _nearest(
    array: Array, names: Sequence[str], prints: Float64 | None, most: int = 4
) -> list[str]:
    if prints is None:
        return []
    distance = np.abs(np.subtract(prints, _print(array))).sum(1)  # [n]
    return [names[place] for place in np.argsort(distance)[:most]]


def _rounding(trace: Trace) -> float:
    operators = {node.op_type for node in trace.graph.node}
    if operators & _INTEGER_OPERATORS:
        return _ROUNDING["integers"]
    half = any(array.dtype.itemsize == 2 and is_float(array) for array in trace.values.values())
    return _ROUNDING["float16" if half else "float32"]


def _finite(trace: Trace, name: str) -> bool:
    array = trace.values[name]
    return not is_float(array) or bool(np.isfinite(array.astype(np.float64)).all())


def _is_numeric(array: Array) -> bool:
    return array.dtype.kind in "fiub" or array.dtype.name == "bfloat16"
