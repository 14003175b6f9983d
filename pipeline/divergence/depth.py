"""How far the values inside a compressed model are from the original's, along its depth.

Values are paired by name, as the passes here keep names, or by place: the same operator of the same
module, where both graphs have equally many of it there. Left out is what says nothing about a loss,
unless it is an output:

1. What has no like of its size: neurons that are fewer, what stands between two factors, integers.
2. What depends on the sizes of inputs alone.
3. What only moves numbers: its error is that of what it reads.
4. A product before its bias: where neurons are fewer, the bias makes up for their mean.

A value that was divided so that its integers are finer, as the V of attention may be, is far off by
itself: what reads it multiplies in turn.

Samples run one at a time, so that no padding is compared, and only the values of one sample are in
memory: those of both graphs, and the weights of both.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx

from compress_onnx.graph_passes.errors import CompressOnnxError
from compress_onnx.pipeline.divergence.trace import (
    Place,
    module_path,
    open_exposed,
    places_of,
    read_proto,
    varying_in,
)
from compress_onnx.pipeline.files.model_file import model_size
from compress_onnx.pipeline.measure.relative_error import is_float, relative_error
from compress_onnx.pipeline.results import DepthError, DepthProfile
from compress_onnx.pipeline.runtime.batches import fixed_batch, model_batches
from compress_onnx.pipeline.runtime.inner_values import read_by
from compress_onnx.pipeline.runtime.samples import Batch, Samples
from compress_onnx.pipeline.runtime.session import SessionSpec, run

SAMPLES = 8
"""So many are compared."""

MOST_BYTES = 4_000_000_000
"""What both models and their values may take in memory; with more, nothing is measured."""

MOST_VALUES = 500
"""So many values are compared, evenly along the depth where there are more: a page holds them."""

_COPIES = 5
"""How often weights are held while a session opens: in the graph that was read, in the one that
gives its values out, as its bytes, and twice by ONNX Runtime."""

_FLOAT_BYTES = 4
_SHAPE = ".measured_shape"
_SIZES = {"Shape", "Size"}
_MOVING = {"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}


class _Pair(NamedTuple):
    """A value of the original and its like in the candidate."""

    reference: str
    candidate: str
    node: onnx.NodeProto
    place: int


def depth_profile(
    reference: Path,
    candidate: Path,
    samples: Samples,
    spec: SessionSpec | None = None,
) -> DepthProfile:
    """The relative errors inside ``candidate``, from the first layer to the last.

    Never an error that is known: where a model is too large or cannot be run, the profile says why
    there is none.

    Args:
        reference: the original.
        candidate: what was made of it.
        samples: the first few are used, or as many as the graph's batch where that is fixed.
        spec: provider and threads.
    """
    try:
        return _measured(reference, candidate, samples, spec or SessionSpec())
    except CompressOnnxError as error:
        return DepthProfile(origin=samples.origin, unmeasured=str(error))


def _measured(
    reference: Path, candidate: Path, samples: Samples, spec: SessionSpec
) -> DepthProfile:
    size = model_size(reference, candidate)
    weights = _COPIES * (size.reference_bytes + size.candidate_bytes)
    if weights > MOST_BYTES:
        return DepthProfile(origin=samples.origin, unmeasured=_too_large(weights))
    ours, theirs = read_proto(reference), read_proto(candidate)
    pairs = _spread(list(_pairs(ours.graph, theirs.graph)))
    if not pairs:
        reason = "no value of the compressed model has its like in the original"
        return DepthProfile(origin=samples.origin, unmeasured=reason)
    names, likes = [pair.reference for pair in pairs], [pair.candidate for pair in pairs]
    feeds, values = _feeds(ours, names, samples, reference.parent)
    if (needed := weights + 2 * values) > MOST_BYTES:
        return DepthProfile(origin=samples.origin, unmeasured=_too_large(needed))
    opened = partial(open_exposed, provider=spec.provider, threads=spec.threads)
    before = opened(ours, names, reference.parent)
    after = opened(theirs, likes, candidate.parent)
    errors: list[list[float]] = [[] for _ in pairs]
    for batch in feeds:
        expected, found = run(before, batch.feeds, names), run(after, batch.feeds, likes)
        for pair, told in zip(pairs, errors, strict=True):
            one, other = expected[pair.reference], found[pair.candidate]
            if is_float(one) and is_float(other) and one.size == other.size:
                told.append(relative_error(one, other))
    return DepthProfile(
        samples=sum(len(batch.index) for batch in feeds),
        origin=samples.origin,
        values=tuple(_told(pair, e) for pair, e in zip(pairs, errors, strict=True) if e),
    )


def _spread(pairs: Sequence[_Pair]) -> list[_Pair]:
    """At most :data:`MOST_VALUES` of them, evenly along the depth, the first and last included."""
    kept = np.linspace(0, len(pairs) - 1, min(len(pairs), MOST_VALUES)).round().astype(int)
    return [pairs[index] for index in kept]


def _told(pair: _Pair, errors: Sequence[float]) -> DepthError:
    mean = sum(errors) / len(errors)
    return DepthError(
        tensor=pair.reference,
        operator=pair.node.op_type,
        node=pair.node.name,
        module=module_path(pair.node),
        place=pair.place,
        error=mean if math.isfinite(mean) else None,
    )


def _pairs(ours: onnx.GraphProto, theirs: onnx.GraphProto) -> Iterator[_Pair]:
    """Values of ``ours`` with their likes in ``theirs``, in the order of the nodes of ``ours``."""
    telling = _telling(ours)
    computed = {name for node in theirs.node for name in node.output if name}
    places, others = places_of(ours), places_of(theirs)
    counts, other_counts = _counts(places), _counts(others)
    placed = {place: name for name, place in others.items()}
    taken = set()
    for index, node in enumerate(ours.node):
        for name in node.output:
            if name not in telling:
                continue
            like = name if name in computed else None
            if like is None and (place := places.get(name)) is not None:
                kind = place[:2]
                if counts[kind] == other_counts[kind] and placed.get(place) in computed:
                    like = placed[place]
            if like is not None and like not in taken:
                taken.add(like)
                yield _Pair(name, like, node, index)


def _telling(graph: onnx.GraphProto) -> set[str]:
    """The values whose error tells of a loss (rules 2 to 4), and the outputs."""
    found = {value.name for value in graph.output}
    stored = {tensor.name for tensor in graph.initializer}
    filled = varying_in(graph, but=_SIZES)
    readers = Counter(name for node in graph.node for name in read_by(node))
    biased = {
        name
        for node in graph.node
        if node.op_type == "Add" and not stored.isdisjoint(node.input)
        for name in node.input
        if readers[name] == 1
    }
    for node in graph.node:
        if node.op_type not in _MOVING:
            told = filled.intersection(node.output)
            found.update(told - biased if node.op_type == "MatMul" else told)
    return found


def _counts(places: Mapping[str, Place]) -> Counter[tuple[str, str]]:
    return Counter((place.module, place.operator) for place in places.values())


def _feeds(
    proto: onnx.ModelProto, names: Sequence[str], samples: Samples, data_folder: Path
) -> tuple[list[Batch], int]:
    """Samples one at a time, and the bytes of the values ``names`` for the largest of them.

    The graph runs once, as only that tells all sizes.
    """
    sizing = onnx.ModelProto()
    sizing.CopyFrom(proto)
    shapes = [f"{name}{_SHAPE}" for name in names]
    sizing.graph.node.extend(
        onnx.helper.make_node("Shape", [name], [shape])
        for name, shape in zip(names, shapes, strict=True)
    )
    session = open_exposed(sizing, shapes, data_folder)
    few = samples.take(max(SAMPLES, fixed_batch(session, samples) or 1))
    feeds = list(model_batches(session, few, 1))
    largest = max(feeds, key=lambda batch: sum(array.size for array in batch.feeds.values()))
    found = run(session, largest.feeds, shapes)
    elements = sum(math.prod(shape.tolist()) for shape in found.values())
    return feeds, _FLOAT_BYTES * elements


def _too_large(needed: int) -> str:
    return (
        f"both models and the values inside them take {needed / 1e9:.1f} GB of memory, and at most "
        f"{MOST_BYTES / 1e9:g} GB are spent on it"
    )
