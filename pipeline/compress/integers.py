"""Round a model: layers that multiply integers, with what integers would spoil left in float.

model + samples -> ranges -> smoothed inputs -> outliers aside -> integers

The ranges are those of the model as it is handed in, compressed or not. What would spoil the one
scale of a layer's inputs is dealt with by what makes them:

1. Of a feed-forward network whose hidden value has a few neurons far beyond the others, these go
   into a branch in float (:mod:`graph_passes.rewriting.outliers`).
2. Other inputs are divided by their reach where that at least halves what rounding costs the
   outputs (:mod:`graph_passes.factorization.smoothing`).

All layers that can take part then multiply integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from compress_onnx.graph_passes.arrays import Float64, Indices
from compress_onnx.graph_passes.factorization.rounding import LIMIT, InputRange
from compress_onnx.graph_passes.factorization.smoothing import Reader, smooth
from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass
from compress_onnx.graph_passes.rewriting.integers import IntegerForm, IntegersPass, why_float
from compress_onnx.graph_passes.rewriting.outliers import OutliersPass
from compress_onnx.graph_passes.rewriting.smoothing import SmoothingPass, shared_inputs
from compress_onnx.graph_passes.sites.ffn import find_ffns
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.pipeline.evidence.ranges import input_ranges
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.original import ModelLike, Original, open_original
from compress_onnx.pipeline.runtime.samples import Samples

Value = TypeVar("Value")

OUTLIERS = 8
"""How many neurons of a network go aside where any do."""

OUTLIER_RATIO = 2.0
"""How much finer the scale of the others has to become by that."""

SMOOTHING_GAIN = 2.0
"""How much less has to be lost where inputs are divided: mostly that takes a Mul."""


@dataclass(frozen=True, eq=False)
class RoundedModel:
    """A model of integers.

    Attributes:
        model: the graph.
        integers: the names of the layers that multiply integers.
        floats: why others do not, by name.
        outliers: how many neurons each network has in a branch, by the name of its down layer.
        smoothed: the layers whose inputs are divided.
        source: what it was made of; weights that lie in its file are there as long as it is.
    """

    model: ir.Model
    integers: tuple[str, ...]
    floats: dict[str, str]
    outliers: dict[str, int]
    smoothed: tuple[str, ...]
    source: Original


def round_model(
    model: ModelLike | Original,
    samples: Samples,
    settings: RunSettings | None = None,
    *,
    form: IntegerForm = "fused",
    limit: int = LIMIT,
    outliers: int = OUTLIERS,
    smoothing: bool = True,
) -> RoundedModel:
    """Round all layers of ``model`` that can be.

    Args:
        model: never changed.
        samples: what ranges are found on.
        settings: how it is run.
        form: which operators multiply integers.
        limit: the largest integer of a weight.
        outliers: how many neurons of a network may go aside; 0 for none.
        smoothing: whether inputs may be divided.

    Raises:
        ModelFileError: the model cannot be read or run.
        DataError: the samples do not fit it.
    """
    settings = settings or RunSettings()
    original = model if isinstance(model, Original) else open_original(model)
    floats = {
        site.name: "inside an If, Loop or Scan" if site.nested else why_float(site)
        for site in original.table.sites
    }
    taking = [site for site in original.table.sites if floats[site.name] is None]
    ranges = input_ranges(original, taking, samples, settings)
    aside: dict[str, Indices] = {}
    hidden: set[ir.Value] = set()
    for ffn in find_ffns(original.table.sites).ffns:
        hidden.add(ffn.down.input)
        found = ranges[ffn.name].outliers(outliers, OUTLIER_RATIO) if ffn.name in ranges else ()
        if len(found):
            aside[ffn.name] = np.asarray(found)
            ranges[ffn.name] = ranges[ffn.name].without(aside[ffn.name])
    groups = shared_inputs([site for site in original.table.sites if site.input not in hidden])
    divisors: dict[str, Float64] = {}
    smoothed: list[str] = []
    for group, divisor in _divided(groups, ranges, limit) if smoothing else ():
        divisors[str(group[0].node.name)] = divisor
        for site in group:
            smoothed.append(site.name)
            if site.name in ranges:
                ranges[site.name] = ranges[site.name].divided(divisor)
    by_node = {str(site.node.name): ranges[site.name] for site in taking if site.name in ranges}
    rewritten = original.copy()
    if aside:
        OutliersPass(aside)(rewritten)
    if divisors:
        SmoothingPass(_by_site(rewritten, divisors))(rewritten)
    scales = _by_site(rewritten, {name: found.scale() for name, found in by_node.items()})
    IntegersPass(scales, form, limit)(rewritten)
    CleanupPass()(rewritten)
    return RoundedModel(
        rewritten,
        tuple(scales),
        {name: reason for name, reason in floats.items() if reason is not None},
        {name: len(neurons) for name, neurons in aside.items()},
        tuple(smoothed),
        original,
    )


def _divided(
    groups: Iterable[list[LinearSite]], ranges: Mapping[str, InputRange], limit: int
) -> Iterator[tuple[list[LinearSite], Float64]]:
    """The layers whose inputs are worth dividing, and by what."""
    for group in groups:
        rounded = [site for site in group if site.name in ranges]
        if not rounded:
            continue
        readers = [Reader(site.weight.array()) for site in rounded]
        smoothed = smooth(ranges[rounded[0].name], readers, limit)
        if smoothed.damage * SMOOTHING_GAIN <= smoothed.damage_before:
            yield group, smoothed.divisor


def _by_site(model: ir.Model, by_node: Mapping[str, Value]) -> dict[str, Value]:
    """By the names of sites; these may come from weights, which get new ones: nodes keep theirs."""
    found = {str(site.node.name): site.name for site in find_sites(model).sites}
    return {found[node]: value for node, value in by_node.items() if node in found}
