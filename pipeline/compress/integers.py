"""Round a model: layers that multiply integers, with what integers would spoil left in float.

model + samples -> ranges -> smoothed inputs -> outliers aside (-> recovery) -> integers

The ranges are those of the model as it is handed in, compressed or not. What would spoil the one
scale of a layer's inputs is dealt with by what makes them:

1. Of a feed-forward network whose hidden value has a few neurons far beyond the others, these go
   into a branch in float (:mod:`graph_passes.rewriting.outliers`).
2. Other inputs are divided by their reach (:mod:`graph_passes.factorization.smoothing`) where that
   at least halves what rounding costs their layers, and matters to the whole model.

All layers that can take part then multiply integers. Where the gradients at the output of each
are known, costs are in their unit: the squared change of the model's outputs. Else that of each
layer is relative to its own output.

Recovery, where it is asked for, trains through the rounding that follows, with the same scales of
the inputs: what is trained is what is served.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from compress_onnx.graph_passes.arrays import Float64, Indices
from compress_onnx.graph_passes.factorization.rounding import LIMIT, InputRange, InputScale
from compress_onnx.graph_passes.factorization.smoothing import (
    Reader,
    rounding_damage,
    smooth,
)
from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass
from compress_onnx.graph_passes.rewriting.integers import IntegerForm, IntegersPass, why_float
from compress_onnx.graph_passes.rewriting.outliers import OutliersPass
from compress_onnx.graph_passes.rewriting.smoothing import SmoothingPass, shared_inputs
from compress_onnx.graph_passes.sites.ffn import find_ffns
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.pipeline.evidence.ranges import input_ranges
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.original import ModelLike, Original, kept, open_original
from compress_onnx.pipeline.recipe import RecoverySpec
from compress_onnx.pipeline.recover.recover import recover_in_memory
from compress_onnx.pipeline.recover.rounding import Rounding
from compress_onnx.pipeline.results import RecoveryReport
from compress_onnx.pipeline.runtime.samples import Samples

Value = TypeVar("Value")

_NONE: Indices = np.empty(0, dtype=np.intp)

OUTLIERS = 8
"""How many neurons of a network go aside where any do."""

OUTLIER_RATIO = 2.0
"""How much finer the scale of the others has to become by that."""

SMOOTHING_GAIN = 2.0
"""How many times less a division has to make what rounding costs its layers."""

SMOOTHING_SHARE = 0.01
"""What it has to save, of what rounding costs the whole model: mostly it takes a Mul."""


@dataclass(frozen=True, eq=False)
class _Decided:
    """What was decided about the layers of a model.

    Attributes:
        model: the graph; it keeps the file that its weights may lie in.
        floats: why layers do not multiply integers, by name.
        outliers: how many neurons each network has in a branch, by the name of its down layer.
        smoothed: the layers whose inputs are divided.
        damage: what rounding costs, predicted: by the layer's name.
    """

    model: ir.Model
    floats: dict[str, str]
    outliers: dict[str, int]
    smoothed: tuple[str, ...]
    damage: dict[str, float]


@dataclass(frozen=True, eq=False)
class RoundedModel(_Decided):
    """A model of integers.

    Attributes:
        integers: the names of the layers that multiply integers.
    """

    integers: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class PreparedModel(_Decided):
    """A model of floats, outliers aside and inputs divided; its weights may be trained first.

    Attributes:
        scales: of the inputs, by the name of the layer; the layers that will multiply integers.
        limit: the largest integer of a weight.
        source: what it was made of.
    """

    scales: dict[str, InputScale]
    limit: int
    source: Original

    @property
    def rounding(self) -> Rounding:
        """What recovery has to know."""
        outputs = {
            site.name: site.node.outputs[0].name or "" for site in find_sites(self.model).sites
        }
        return Rounding({outputs[name]: s for name, s in self.scales.items()}, self.limit)

    def recover(
        self, reference: Path, samples: Samples, recovery: RecoverySpec, settings: RunSettings
    ) -> RecoveryReport:
        """Train ``model`` in place to do what ``reference`` does once it is rounded.

        Args:
            reference: the original model.
            samples: unlabelled data; never the validation data.
            recovery: budget, learning rate, what is trained and compared.
            settings: how the models are run.

        Raises:
            CompressOnnxError: as for :func:`~pipeline.recover.recover.recover`.
        """
        return recover_in_memory(
            reference,
            self.model,
            samples,
            recovery,
            settings,
            data_folder=self.source.data_folder,
            rounding=self.rounding,
        )

    def rounded(self, form: IntegerForm = "fused") -> RoundedModel:
        """The model of integers; ``form`` says which operators multiply them."""
        model = kept(self.model.clone(), self.source)
        IntegersPass(self.scales, form, self.limit)(model)
        CleanupPass()(model)
        decided = {field.name: getattr(self, field.name) for field in fields(_Decided)}
        return RoundedModel(**{**decided, "model": model}, integers=tuple(self.scales))


def round_model(
    model: ModelLike | Original,
    samples: Samples,
    settings: RunSettings | None = None,
    *,
    form: IntegerForm = "fused",
    limit: int = LIMIT,
    outliers: int = OUTLIERS,
    smoothing: bool = True,
    moments: Mapping[str, Float64] | None = None,
    only: Collection[str] | None = None,
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
        moments: ``[N, N]`` of the gradients at the output of each layer, by the name of its node.
        only: the layers that may take part; None for all.

    Raises:
        ModelFileError: the model cannot be read or run.
        DataError: the samples do not fit it.
    """
    prepared = prepare_integers(
        model,
        samples,
        settings,
        limit=limit,
        outliers=outliers,
        smoothing=smoothing,
        moments=moments,
        only=only,
    )
    return prepared.rounded(form)


def prepare_integers(
    model: ModelLike | Original,
    samples: Samples,
    settings: RunSettings | None = None,
    *,
    limit: int = LIMIT,
    outliers: int = OUTLIERS,
    smoothing: bool = True,
    moments: Mapping[str, Float64] | None = None,
    only: Collection[str] | None = None,
) -> PreparedModel:
    """Find out how to round ``model``: arguments and errors are those of :func:`round_model`."""
    settings = settings or RunSettings()
    original = model if isinstance(model, Original) else open_original(model)
    floats = {
        site.name: "inside an If, Loop or Scan" if site.nested else why_float(site)
        for site in original.table.sites
    }
    if only is not None:
        floats = {
            name: reason if name in only else reason or "left out"
            for name, reason in floats.items()
        }
    taking = [site for site in original.table.sites if floats[site.name] is None]
    ranges = input_ranges(original, taking, samples, settings)
    taking = [site for site in taking if site.name in ranges]
    aside: dict[str, Indices] = {}
    hidden: set[ir.Value] = set()
    for ffn in find_ffns(original.table.sites).ffns:
        hidden.add(ffn.down.input)
        found = ranges[ffn.name].outliers(outliers, OUTLIER_RATIO) if ffn.name in ranges else ()
        if len(found):
            aside[ffn.name] = np.asarray(found)
            ranges[ffn.name] = ranges[ffn.name].without(aside[ffn.name])
    readers = _readers(taking, ranges, aside, moments or {})
    damage = {
        site.name: rounding_damage(ranges[site.name], [readers(site)], limit=limit)
        for site in taking
    }
    least = SMOOTHING_SHARE * sum(damage.values())
    divisors: dict[str, Float64] = {}
    smoothed: list[str] = []
    groups = shared_inputs([site for site in original.table.sites if site.input not in hidden])
    for group in groups if smoothing else ():
        rounded = [site for site in group if site.name in damage]
        if sum(damage[site.name] for site in rounded) <= least:
            continue
        choice = smooth(ranges[rounded[0].name], [readers(site) for site in rounded], limit)
        before = choice.damage_before
        if SMOOTHING_GAIN * choice.damage <= before and before - choice.damage > least:
            divisors[str(group[0].node.name)] = choice.divisor
            smoothed += [site.name for site in group]
            for site in rounded:
                damage[site.name] = rounding_damage(
                    ranges[site.name], [readers(site)], choice.divisor, limit
                )
                ranges[site.name] = ranges[site.name].divided(choice.divisor)
    by_node = {str(site.node.name): ranges[site.name].scale() for site in taking}
    rewritten = original.copy()
    if aside:
        OutliersPass(aside)(rewritten)
    if divisors:
        SmoothingPass(_by_site(rewritten, divisors))(rewritten)
    CleanupPass()(rewritten)
    scales = _by_site(rewritten, by_node)
    return PreparedModel(
        model=rewritten,
        floats={name: reason for name, reason in floats.items() if reason is not None},
        outliers={name: len(neurons) for name, neurons in aside.items()},
        smoothed=tuple(smoothed),
        damage=damage,
        scales=scales,
        limit=limit,
        source=original,
    )


def _readers(
    sites: Sequence[LinearSite],
    ranges: Mapping[str, InputRange],
    aside: Mapping[str, Indices],
    moments: Mapping[str, Float64],
) -> Callable[[LinearSite], Reader]:
    """Reads one weight at a time, without the neurons aside.

    In the unit of ``moments`` where all layers have one, else relative to each layer's outputs.
    """
    known = {site.name: moments.get(str(site.node.name)) for site in sites}
    in_unit = all(
        moment is not None and len(moment) == site.out_features
        for site, moment in zip(sites, known.values(), strict=True)
    )

    def reader(site: LinearSite) -> Reader:
        weight = site.alpha * site.weight.array().astype(np.float64)
        weight = np.delete(weight, aside.get(site.name, _NONE), axis=0)
        if in_unit:
            return Reader.of(weight, known[site.name])
        return Reader.relative(weight, ranges[site.name])

    return reader


def _by_site(model: ir.Model, by_node: Mapping[str, Value]) -> dict[str, Value]:
    """By the names of sites; these may come from weights, which get new ones: nodes keep theirs."""
    found = {str(site.node.name): site.name for site in find_sites(model).sites}
    return {found[node]: value for node, value in by_node.items() if node in found}
