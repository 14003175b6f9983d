"""One way there and back through any ONNX graph, batch by batch.

A large model runs in segments (:mod:`~pipeline.evidence.segments`): there, what is alive between
them is kept; back, each runs over all samples with the gradients at its end as seeds, and hands the
gradients at its beginning on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from compress_onnx.graph_passes.arrays import Array, Float32, Stored
from compress_onnx.graph_passes.errors import NotDifferentiableError
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.pipeline.evidence.adjoint import Adjoint, in_single, is_prepared, prepared
from compress_onnx.pipeline.evidence.segments import Segments, is_large, reads_of
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.evidence.shifts import referring, self_contained, weights_outside
from compress_onnx.pipeline.files.original import Original
from compress_onnx.pipeline.files.shelf import Shelf
from compress_onnx.pipeline.runtime.batches import POSITIONS, check_samples, model_batches
from compress_onnx.pipeline.runtime.inner_values import exposed, interface
from compress_onnx.pipeline.runtime.memory import return_freed
from compress_onnx.pipeline.runtime.samples import Batch, Samples
from compress_onnx.pipeline.runtime.session import open_session, run

Seeding = Callable[[Array, Batch], Float32]
"""The adjoint that an output starts from, of the output's shape, given its value."""

_MOST_SIZES = 64

ADVICE = "use the method asvd, with --allocation sensitivity to measure instead"


@dataclass(frozen=True)
class SiteValues:
    """One batch at one site: inputs ``[..., K]``, and the gradient ``[..., N]`` at its output."""

    inputs: Array
    gradient: Float32


def backward(
    original: Original,
    sites: Sequence[LinearSite],
    samples: Samples,
    seeding: Seeding,
    settings: RunSettings,
) -> Iterator[tuple[Batch, dict[str, SiteValues]]]:
    """Run forwards and backwards batch by batch; yields the values at each site, by its name.

    Args:
        original: the model; never changed.
        sites: those of its sites to look at; all of them can be shifted.
        samples: the data.
        seeding: what to differentiate, as the adjoint of each float output.
        settings: how the model is run.

    Raises:
        NotDifferentiableError: an operator has no gradient.
        ModelFileError: the model is too large to be rewritten in a recent opset, in float32.
        DataError: the samples do not fit the model.
    """
    graph = referring(original.model, original.data_folder)
    if not is_prepared(graph):
        graph = self_contained(original.model, original.data_folder)
    graph = prepared(graph)
    outputs = [value.name for value in graph.graph.output if _is_float(value)]
    door = open_session(interface(original.model), settings.session)
    check_samples(door, samples)
    batches = list(model_batches(door, samples, settings.batch_size, POSITIONS))
    with weights_outside(graph, original.data_folder) as (graph, folder):
        if is_large(original):
            yield from _in_segments(graph, sites, batches, seeding, settings, data_folder=folder)
            return
        adjoint = _adjoint(graph, sites, outputs, settings, data_folder=folder)
        plain = open_session(
            exposed(original.model, ()), settings.session, data_folder=original.data_folder
        )
        for batch in batches:
            found = run(plain, batch.feeds, outputs)
            seeds = {name: seeding(value, batch) for name, value in found.items()}
            gradients, beside = adjoint.run(batch.feeds, seeds)
            yield batch, _site_values(sites, {**batch.feeds, **beside}, gradients)


def _in_segments(
    graph: onnx.ModelProto,
    sites: Sequence[LinearSite],
    batches: Sequence[Batch],
    seeding: Seeding,
    settings: RunSettings,
    *,
    data_folder: Path,
) -> Iterator[tuple[Batch, dict[str, SiteValues]]]:
    """:func:`backward`, by segments: all batches with the sites of the last one, and so on.

    Sites that lead to no output are left out.
    """
    outputs = [value.name for value in graph.graph.output if _is_float(value)]
    feeds = [in_single(batch.feeds) for batch in batches]
    segments = Segments(graph, data_folder, feeds, settings.session, kept=outputs)
    for _, ran in segments.run():
        deque(ran, maxlen=0)
    moving, shelf = _behind(graph.graph, sites), Shelf()
    waiting: list[dict[str, Stored]] = [
        {
            name: shelf.put(seeding(value, batch))
            for name, value in segments.values(index, outputs).items()
        }
        for index, batch in enumerate(batches)
    ]
    for segment in segments.backwards():
        of = [name for name in segment.outputs if name in waiting[0]]
        made = {name for node in segment.nodes(graph.graph) for name in node.output}
        here = [site for site in sites if site.node.outputs[0].name in made]
        first = segments.values(0, (*segment.inputs, *segment.outputs))
        onwards = [n for n in segment.inputs if n in moving and first[n].dtype.kind == "f"]
        if not of or not (here or onwards):
            continue
        model = segments.model(segment, first, of)
        adjoint = _adjoint(
            model,
            here,
            of,
            settings,
            data_folder=data_folder,
            onwards=onwards,
            sizes=[n for n in segment.inputs if n not in feeds[0] and _may_be_sizes(first[n])],
        )
        for index, batch in enumerate(batches):
            given, later = segments.values(index, segment.inputs), waiting[index]
            seeds = {name: np.asarray(later.pop(name)) for name in of}
            gradients, beside = adjoint.run(given, seeds)
            for name in onwards:
                more = gradients[name]
                later[name] = shelf.put(more + np.asarray(later[name]) if name in later else more)
            yield batch, _site_values(here, {**given, **beside}, gradients)
        del adjoint
        return_freed()


def _adjoint(
    graph: onnx.ModelProto,
    sites: Sequence[LinearSite],
    of: Sequence[str],
    settings: RunSettings,
    *,
    data_folder: Path,
    onwards: Sequence[str] = (),
    sizes: Sequence[str] = (),
) -> Adjoint:
    """That of the values ``of`` by the outputs of ``sites`` and the inputs ``onwards``."""
    fed = {value.name for value in graph.graph.input}
    inputs = [site.input.name or "" for site in sites]
    return Adjoint(
        graph,
        [*(site.node.outputs[0].name or "" for site in sites), *onwards],
        of,
        beside=[name for name in inputs if name not in fed],
        sizes=sizes,
        advice=ADVICE,
        spec=settings.session,
        data_folder=data_folder,
    )


def _may_be_sizes(value: Array) -> bool:
    return value.dtype.kind == "i" and value.size <= _MOST_SIZES


def _behind(graph: onnx.GraphProto, sites: Sequence[LinearSite]) -> set[str]:
    """The values that depend on the output of any of ``sites``, these included."""
    moving = {site.node.outputs[0].name or "" for site in sites}
    for node in graph.node:
        if not moving.isdisjoint(reads_of([node])):
            moving.update(node.output)
    return moving


def _site_values(
    sites: Sequence[LinearSite], seen: Mapping[str, Array], gradients: Mapping[str, Float32]
) -> dict[str, SiteValues]:
    return {
        site.name: SiteValues(
            _rows(site, seen[site.input.name or ""]),
            _finite(gradients[site.node.outputs[0].name or ""]),
        )
        for site in sites
    }


def _is_float(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT)


def _rows(site: LinearSite, inputs: Array) -> Array:
    return np.swapaxes(inputs, -1, -2) if site.transpose_input else inputs


def _finite(gradient: Float32) -> Float32:
    if not np.isfinite(gradient).all():
        raise NotDifferentiableError(f"a gradient of this graph is not finite: {ADVICE}")
    return gradient
