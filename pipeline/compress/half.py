"""Halve a model: layers that compute with float16, with what that would spoil left in float32.

model (+ samples -> magnitudes) -> float16

Most of what stays is known before any data (:mod:`graph_passes.rewriting.half_rules`): operators
without a float16, norms written out, exact positions. ONNX Runtime has a list of further operators
that its own converter keeps in float32; it is taken over. With samples the model also runs once, in
float32, and whatever makes or reads a value that float16 could not hold stays too. Values inside an
If, Loop or Scan are not looked at.

A residual sum and the norm behind it are one kernel on CUDA, which adds squares up in float16 even
where one of each adds them up in float32. Where they would leave its range, the two stay apart
(:mod:`graph_passes.rewriting.unfused_norms`).

The model is made for GPUs. On the CPU, ONNX Runtime casts to float32 in front of nearly every
operator.

Masks are bounded first (:mod:`graph_passes.rewriting.bound_masks`), so that the magnitudes are
those of the model that float16 has to hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST

from compress_onnx.graph_passes.planning.plan import LayerPlan
from compress_onnx.graph_passes.rewriting.bound_masks import BoundMasksPass
from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass
from compress_onnx.graph_passes.rewriting.half import HalfPass
from compress_onnx.graph_passes.rewriting.half_rules import unfit_magnitude
from compress_onnx.graph_passes.rewriting.unfused_norms import UnfuseNormsPass, residual_sums
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.pipeline.evidence.magnitudes import magnitudes
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.original import ModelLike, Original, open_original
from compress_onnx.pipeline.runtime.samples import Samples

ROOM = 2.0
"""How many times as large as on the samples a value may become."""

KERNEL = "ONNX Runtime's own converter keeps it in float32"


@dataclass(frozen=True, eq=False)
class HalfModel:
    """A model that computes with float16.

    Attributes:
        model: the graph; its inputs and outputs have the names and types that they had. It keeps
            the file that its weights may lie in.
        floats: why nodes stay in float32, by name.
        layers: all layers, as a plan tells of them.
    """

    model: ir.Model
    floats: dict[str, str]
    layers: tuple[LayerPlan, ...]


def half_model(
    model: ModelLike | Original,
    samples: Samples | None = None,
    settings: RunSettings | None = None,
) -> HalfModel:
    """Turn ``model`` into one that computes with float16 where that is good enough.

    Args:
        model: never changed.
        samples: what magnitudes are found on; without, a value that float16 cannot hold becomes
            infinite.
        settings: how it is run.

    Raises:
        ModelFileError: the model cannot be read or run.
        DataError: the samples do not fit it.
    """
    original = model if isinstance(model, Original) else open_original(model)
    rewritten = original.copy()
    BoundMasksPass()(rewritten)
    floats = {
        node.name or "": KERNEL
        for node in ir.traversal.RecursiveGraphIterator(rewritten.graph)
        if node.op_type in DEFAULT_OP_BLOCK_LIST
    }
    if samples is not None:
        sums = {node.outputs[0].name or "": node.name or "" for node in residual_sums(rewritten)}
        settings = settings or RunSettings()
        found = magnitudes(rewritten, original.data_folder, samples, settings, sums)
        floats |= dict(_beyond(rewritten, found.largest))
        UnfuseNormsPass({sums[n] for n, s in found.mean_squares.items() if _unfit(s)})(rewritten)
    halving = HalfPass(floats)
    halving(rewritten)
    CleanupPass()(rewritten)
    _record_shapes(rewritten)
    layers = tuple(_layer(site, halving.floats) for site in find_sites(rewritten).sites)
    return HalfModel(rewritten, dict(halving.floats), layers)


def _layer(site: LinearSite, floats: Mapping[str, str]) -> LayerPlan:
    node = str(site.node.name)
    return LayerPlan(
        layer=site.name,
        node=node,
        numbers="float32" if node in floats else "float16",
        reason=floats.get(node, "a GPU multiplies half floats faster"),
        weight_bytes=site.weight.itemsize * math.prod(site.weight.shape),
    )


def _record_shapes(model: ir.Model) -> None:
    """Where none is recorded: ONNX Runtime fuses a sum and a norm only if it knows their shapes."""
    inferred = model.clone()
    ShapeInferencePass()(inferred)
    shapes = {value.name: value.shape for node in inferred.graph for value in node.outputs}
    for node in model.graph:
        for value in node.outputs:
            if value.shape is None and not value.is_graph_output():
                value.shape = shapes.get(value.name)


def _beyond(model: ir.Model, largest: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """The nodes that make or read what float16 cannot hold."""
    for node in model.graph:
        for value in node.outputs:
            reason = unfit_magnitude(largest.get(value.name or "", 0.0), f"{value.name}", ROOM)
            if reason is not None:
                yield node.name or "", reason
                yield from ((reader.name or "", reason) for reader, _ in value.uses())


def _unfit(mean_square: float) -> bool:
    return unfit_magnitude(mean_square, "", ROOM) is not None
