"""Round the weights of a model to few bits, with a low-rank residual if wanted.

model + samples -> statistics -> integers and factors -> rewritten layers

The statistics are those of the model as it is handed in, compressed or not. Gradients are not taken
again: a layer that is shaped as it was when they were is weighed by them still.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from compress_onnx.graph_passes.factorization import ActivationStats, GradientStats
from compress_onnx.graph_passes.factorization.storage import Storage
from compress_onnx.graph_passes.factorization.weight_only import (
    Bits,
    WeightOnly,
    round_weight_only,
)
from compress_onnx.graph_passes.planning.plan import LayerPlan
from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass
from compress_onnx.graph_passes.rewriting.weight_only import WeightOnlyPass, why_not_weight_only
from compress_onnx.graph_passes.sites.grouping import group_by_weight
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.pipeline.evidence.calibrate import calibrate
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.original import ModelLike, Original, open_original
from compress_onnx.pipeline.runtime.samples import Samples


@dataclass(frozen=True, eq=False)
class WeightOnlyModel:
    """A model with weights of few bits.

    Attributes:
        model: the graph.
        damage: of each weight that was rounded, by its key: ``tr(G ΔᵀCΔ)``.
        floats: why other layers stay as they are, by name.
        layers: all layers, as a plan tells of them.
    """

    model: ir.Model
    damage: dict[str, float]
    floats: dict[str, str]
    layers: tuple[LayerPlan, ...]


def round_weights(
    model: ModelLike | Original,
    samples: Samples | None,
    settings: RunSettings | None = None,
    *,
    bits: Bits = 4,
    residual: float = 0.0,
    storage: Storage = "int8",
    gradients: Mapping[str, GradientStats] | None = None,
) -> WeightOnlyModel:
    """Round the weights of all layers of ``model`` that can be.

    Args:
        model: never changed.
        samples: what statistics are taken on; None looks at the weights alone.
        settings: how it is run.
        bits: of a weight.
        residual: the rank of the factors of what is left over, in parts of min(K, N).
        storage: how the file holds the factors of residuals.
        gradients: of layers, by name, of this model or of one that it was made of.

    Raises:
        ModelFileError: the model cannot be read or run.
        DataError: the samples do not fit it.
        RequestError: the storage cannot hold the factors.
    """
    settings = settings or RunSettings()
    original = model if isinstance(model, Original) else open_original(model)
    stats: Mapping[str, ActivationStats] = {}
    if samples is not None:
        stats = calibrate(original, samples, settings).stats
    rounded: dict[str, WeightOnly] = {}
    floats: dict[str, str] = {}
    groups = group_by_weight(original.table.sites)
    with settings.progress.step("round weights", len(groups)) as update:
        for done, (key, sites) in enumerate(groups.items()):
            reasons = {site.name: why_not_weight_only(site) for site in sites}
            found = {name: reason for name, reason in reasons.items() if reason is not None}
            if found:
                shared = "a layer that shares its weight stays as it is"
                floats |= {name: reason or shared for name, reason in reasons.items()}
            else:
                weight, known = sites[0].weight.array(), _known(sites, stats, gradients or {})
                rank = round(residual * min(weight.shape))
                rounded[key] = round_weight_only(weight, known, bits, rank=rank, storage=storage)
            update(done + 1)
    rewritten = original.copy()
    WeightOnlyPass(rounded)(rewritten)
    CleanupPass()(rewritten)
    damage = {key: found.damage for key, found in rounded.items()}
    layers = [_layer(s, rounded.get(s.weight.key), floats) for s in original.table.sites]
    return WeightOnlyModel(rewritten, damage, floats, tuple(layers))


def _layer(site: LinearSite, found: WeightOnly | None, floats: Mapping[str, str]) -> LayerPlan:
    if found is None:
        numbers, reason = "float32", floats[site.name]
        held_bytes = site.weight.itemsize * math.prod(site.weight.shape)
    else:
        numbers, reason = f"{found.base.bits}-bit weights", "they make the file small"
        held_bytes = found.stored_bytes
    return LayerPlan(
        layer=site.name,
        node=str(site.node.name),
        numbers=numbers,
        reason=reason,
        damage=None if found is None else found.damage,
        weight_bytes=held_bytes,
    )


def _known(
    sites: Sequence[LinearSite],
    stats: Mapping[str, ActivationStats],
    gradients: Mapping[str, GradientStats],
) -> ActivationStats | None:
    """What is known about the weight that ``sites`` share; None where nothing is about one."""
    parts = [stats.get(site.name) for site in sites]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    fitting = [gradients.get(site.name) for site in sites]
    return ActivationStats.merge(
        replace(part, gradients=found if found is not None and _fits(found, site) else None)
        for site, part, found in zip(sites, known, fitting, strict=True)
    )


def _fits(found: GradientStats, site: LinearSite) -> bool:
    return (len(found.inputs.mean), len(found.moment)) == site.weight.shape
