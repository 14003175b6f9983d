"""Round a model: layers that multiply integers, with what integers would spoil left in float.

model + samples -> ranges -> outliers aside -> integers

The ranges are those of the model as it is handed in, compressed or not. Of a feed-forward network
whose hidden value has a few neurons far beyond the others, these go into a branch in float
(:mod:`graph_passes.rewriting.outliers`); all other layers that can take part multiply integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compress_onnx.graph_passes.arrays import Indices
from compress_onnx.graph_passes.factorization.rounding import LIMIT, InputRange
from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass
from compress_onnx.graph_passes.rewriting.integers import IntegerForm, IntegersPass, why_float
from compress_onnx.graph_passes.rewriting.outliers import OutliersPass
from compress_onnx.graph_passes.sites.ffn import find_ffns
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.pipeline.evidence.ranges import input_ranges
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.original import ModelLike, Original, open_original
from compress_onnx.pipeline.runtime.samples import Samples

OUTLIERS = 8
"""How many neurons of a network go aside where any do."""

OUTLIER_RATIO = 2.0
"""How much finer the scale of the others has to become by that."""


@dataclass(frozen=True, eq=False)
class RoundedModel:
    """A model of integers.

    Attributes:
        model: the graph.
        integers: the names of the layers that multiply integers.
        floats: why others do not, by name.
        outliers: how many neurons each network has in a branch, by the name of its down layer.
        source: what it was made of; weights that lie in its file are there as long as it is.
    """

    model: ir.Model
    integers: tuple[str, ...]
    floats: dict[str, str]
    outliers: dict[str, int]
    source: Original


def round_model(
    model: ModelLike | Original,
    samples: Samples,
    settings: RunSettings | None = None,
    *,
    form: IntegerForm = "fused",
    limit: int = LIMIT,
    outliers: int = OUTLIERS,
) -> RoundedModel:
    """Round all layers of ``model`` that can be.

    Args:
        model: never changed.
        samples: what ranges are found on.
        settings: how it is run.
        form: which operators multiply integers.
        limit: the largest integer of a weight.
        outliers: how many neurons of a network may go aside; 0 for none.

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
    for ffn in find_ffns(original.table.sites).ffns:
        found = ranges[ffn.name].outliers(outliers, OUTLIER_RATIO) if ffn.name in ranges else ()
        if len(found):
            aside[ffn.name] = np.asarray(found)
    # Names of layers may come from their weights, which get new ones: nodes keep theirs.
    by_node = {
        site.node.name: _without(ranges[site.name], aside.get(site.name))
        for site in taking
        if site.name in ranges
    }
    rewritten = original.copy()
    if aside:
        OutliersPass(aside)(rewritten)
    scales = {
        site.name: by_node[site.node.name].scale()
        for site in find_sites(rewritten).sites
        if site.node.name in by_node
    }
    IntegersPass(scales, form, limit)(rewritten)
    CleanupPass()(rewritten)
    return RoundedModel(
        rewritten,
        tuple(scales),
        {name: reason for name, reason in floats.items() if reason is not None},
        {name: len(neurons) for name, neurons in aside.items()},
        original,
    )


def _without(found: InputRange, aside: Indices | None) -> InputRange:
    if aside is None:
        return found
    return InputRange(np.delete(found.low, aside), np.delete(found.high, aside))
