"""Round the weights of a model to few bits, with a low-rank residual if wanted.

model + samples -> statistics -> integers and factors (-> training) -> rewritten layers

The statistics are those of the model as it is handed in, compressed or not. Gradients are not taken
again: a layer that is shaped as it was when they were is weighed by them still.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from compress_onnx.graph_passes.factorization import ActivationStats, GradientStats
from compress_onnx.graph_passes.factorization.storage import Storage
from compress_onnx.graph_passes.factorization.weight_only import (
    Bits,
    BlockWeight,
    WeightOnly,
    round_weight_only,
    round_with,
)
from compress_onnx.graph_passes.planning.plan import LayerPlan
from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass
from compress_onnx.graph_passes.rewriting.trainable import set_array
from compress_onnx.graph_passes.rewriting.weight_only import WeightOnlyPass, why_not_weight_only
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.graph_passes.sites.grouping import group_by_weight
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.pipeline.compress.prepared import Prepared
from compress_onnx.pipeline.evidence.calibrate import calibrate
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.original import ModelLike, Original, kept, open_original
from compress_onnx.pipeline.recover.rounding import Blocks, Rounding
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


@dataclass(frozen=True, eq=False)
class PreparedWeights(Prepared):
    """A model of floats whose weights are what their integers stand for; they may be trained first.

    Scales stay, and no bias is corrected: training has both in view.

    Attributes:
        model: the graph; it keeps the file that its weights may lie in.
        found: what stands for each weight, by its key, before training.
        floats: why other layers stay as they are, by name.
        source: what it was made of.
    """

    model: ir.Model
    found: dict[str, WeightOnly]
    floats: dict[str, str]
    source: Original

    @property
    def rounding(self) -> Rounding:
        """What recovery has to know."""
        return Rounding(
            blocks={
                site.node.outputs[0].name or "": Blocks(base.scale, base.bits)
                for site, base in self._sites()
            }
        )

    def rounded(self) -> WeightOnlyModel:
        """The model with weights of few bits; damage is what it was before training."""
        bases = {
            site.weight.key: round_with(site.weight.array(), base.scale, base.bits)
            for site, base in self._sites()
        }
        found = {key: replace(self.found[key], base=base) for key, base in bases.items()}
        model = kept(self.model.clone(), self.source)
        return _rewritten(model, found, self.floats)

    def _sites(self) -> Iterator[tuple[LinearSite, BlockWeight]]:
        for site in find_sites(self.model).sites:
            if site.weight.key in self.found:
                yield site, self.found[site.weight.key].base


def prepare_weights(
    model: ModelLike | Original,
    samples: Samples | None,
    settings: RunSettings | None = None,
    *,
    bits: Bits = 4,
    gradients: Mapping[str, GradientStats] | None = None,
) -> PreparedWeights:
    """Find integers for the weights of ``model``, to train them: as :func:`round_weights`."""
    original = model if isinstance(model, Original) else open_original(model)
    found, floats = _found(original, samples, settings, bits=bits, gradients=gradients)
    prepared = original.copy()
    for key, sites in group_by_weight(find_sites(prepared).sites).items():
        if key not in found:
            continue
        if any(site.nested for site in sites):
            del found[key]
            floats |= {site.name: "inside an If, Loop or Scan" for site in sites}
            continue
        found[key] = replace(found[key], bias=None)
        values, weight = found[key].base.values(), sites[0].weight
        set_array(weight.initializer, values.T if weight.transposed else values)
    return PreparedWeights(prepared, found, floats, original)


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
    original = model if isinstance(model, Original) else open_original(model)
    found, floats = _found(
        original,
        samples,
        settings,
        bits=bits,
        gradients=gradients,
        residual=residual,
        storage=storage,
    )
    return _rewritten(original.copy(), found, floats)


def _found(
    original: Original,
    samples: Samples | None,
    settings: RunSettings | None,
    *,
    bits: Bits,
    gradients: Mapping[str, GradientStats] | None,
    residual: float = 0.0,
    storage: Storage = "int8",
) -> tuple[dict[str, WeightOnly], dict[str, str]]:
    """What stands for each weight, by its key, and why other layers stay as they are, by name."""
    settings = settings or RunSettings()
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
    return rounded, floats


def _rewritten(
    model: ir.Model, found: Mapping[str, WeightOnly], floats: dict[str, str]
) -> WeightOnlyModel:
    layers = [_layer(s, found.get(s.weight.key), floats) for s in find_sites(model).sites]
    WeightOnlyPass(found)(model)
    CleanupPass()(model)
    damage = {key: weight.damage for key, weight in found.items()}
    return WeightOnlyModel(model, damage, floats, tuple(layers))


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
    return (len(found.inputs.mean), found.outputs) == site.weight.shape
