"""Round a model: layers that multiply integers, with what integers would spoil left in float.

model + samples -> ranges -> outliers aside -> smoothed inputs (-> recovery) -> integers

The ranges are those of the model as it is handed in, compressed or not. What would spoil the one
scale of a layer's inputs is dealt with by what makes them:

1. Of a feed-forward network whose hidden value has a few neurons far beyond the others, these go
   into a branch in float (:mod:`graph_passes.rewriting.outliers`).
2. Other inputs are divided by their reach (:mod:`graph_passes.factorization.smoothing`).
3. Layers that lose too much all the same stay in float.

Each is done where it saves enough damage (:class:`Thresholds`). Where the gradients at the output
of each layer are known, damage is in their unit: the squared change of the model's outputs. Else
that of each layer is relative to its own output.

Recovery, where it is asked for, trains through the rounding that follows, with the same scales of
the inputs: what is trained is what is served.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
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
from compress_onnx.graph_passes.planning.plan import LayerPlan
from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass
from compress_onnx.graph_passes.rewriting.integers import IntegerForm, IntegersPass, why_float
from compress_onnx.graph_passes.rewriting.outliers import OutliersPass
from compress_onnx.graph_passes.rewriting.smoothing import SmoothingPass, folds, shared_inputs
from compress_onnx.graph_passes.sites.ffn import FFN, find_ffns
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.pipeline.compress.prepared import Prepared
from compress_onnx.pipeline.evidence.ranges import input_ranges
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.original import ModelLike, Original, kept, open_original
from compress_onnx.pipeline.recover.rounding import Rounding
from compress_onnx.pipeline.runtime.samples import Samples

Value = TypeVar("Value")

_SCALE_BYTES = 4
_MORE = 1 + 1e-9
_NONE: Indices = np.empty(0, dtype=np.intp)

OUTLIERS = 8
"""How many neurons of a network go aside where any do."""

OUTLIER_RATIO = 2.0
"""How much finer the scale of the others has to become by that."""

DIVISION_SHARE = 0.01
"""What a division has to save, of what rounding costs the whole model, where nobody says more."""

DIVISION_GAIN = 2.0
"""How many times less it then has to make what rounding costs its layers."""


@dataclass(frozen=True)
class Thresholds:
    """The damage that has to be saved by what takes time.

    Attributes:
        division: a Mul in front of layers; a division that costs no node has to save anything.
        division_gain: how many times less it has to make what rounding costs these layers.
        branch: outliers of a network in float.
        float_parameter: a layer that stays in float, for each of its parameters.
    """

    division: float = 0.0
    division_gain: float = 1.0
    branch: float = 0.0
    float_parameter: float = math.inf


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
        layers: all layers, as a plan tells of them.
    """

    integers: tuple[str, ...]
    layers: tuple[LayerPlan, ...]


@dataclass(frozen=True, eq=False)
class PreparedModel(_Decided, Prepared):
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

    def rounded(self, form: IntegerForm = "fused") -> RoundedModel:
        """The model of integers; ``form`` says which operators multiply them."""
        model = kept(self.model.clone(), self.source)
        layers = tuple(map(self._layer, find_sites(self.model).sites))
        damage = {layer.layer: layer.damage for layer in layers if layer.damage is not None}
        IntegersPass(self.scales, form, self.limit, damage=damage)(model)
        CleanupPass()(model)
        decided = {field.name: getattr(self, field.name) for field in fields(_Decided)}
        return RoundedModel(
            **{**decided, "model": model},
            integers=tuple(self.scales),
            layers=layers,
        )

    def _layer(self, site: LinearSite) -> LayerPlan:
        nodes = {str(known.node.name): known.name for known in self.source.table.sites}
        name = nodes.get(str(site.node.name), site.name)
        size = site.in_features * site.out_features
        if site.name not in self.scales:
            reason = self.floats.get(name) or why_float(site) or "its input was never seen"
            numbers, held_bytes = "float32", site.weight.itemsize * size
        else:
            aside = self.outliers.get(name)
            parts = [
                "products of integers are faster",
                f"{aside} outliers of its input are in a branch" if aside else "",
                "its input is divided by its reach" if name in self.smoothed else "",
            ]
            reason = "; ".join(filter(None, parts))
            numbers, held_bytes = "int8", size + _SCALE_BYTES * site.out_features
        return LayerPlan(
            layer=site.name,
            node=str(site.node.name),
            numbers=numbers,
            reason=reason,
            damage=self.damage.get(name),
            weight_bytes=held_bytes,
        )


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
    thresholds: Thresholds | None = None,
) -> PreparedModel:
    """Find out how to round ``model``.

    Args:
        model: never changed.
        samples: what ranges are found on.
        settings: how it is run.
        limit: the largest integer of a weight.
        outliers: how many neurons of a network may go aside; 0 for none.
        smoothing: whether inputs may be divided.
        moments: ``[N, N]`` of the gradients at the output of each layer, by the name of its node.
        only: the layers that may take part; None for all.
        thresholds: in the unit of ``moments``. Without, or where a layer has no moment, all
            outliers go aside, what matters to the whole model is divided, and all layers multiply
            integers.

    Raises:
        ModelFileError: the model cannot be read or run.
        DataError: the samples do not fit it.
    """
    settings = settings or RunSettings()
    original = model if isinstance(model, Original) else open_original(model)
    sites = original.table.sites
    floats = {
        site.name: "inside an If, Loop or Scan" if site.nested else why_float(site)
        for site in sites
    }
    if only is not None:
        floats = {
            name: reason if name in only else reason or "left out"
            for name, reason in floats.items()
        }
    taking = [site for site in sites if floats[site.name] is None]
    ranges = input_ranges(original, taking, samples, settings)
    deciding = _Deciding([s for s in taking if s.name in ranges], ranges, moments or {}, limit)
    ffns = find_ffns(sites).ffns
    if thresholds is None or not deciding.in_unit:
        deciding.take_aside(ffns, outliers, 0.0)
        least = DIVISION_SHARE * sum(deciding.damage.values())
        thresholds = Thresholds(division=least, division_gain=DIVISION_GAIN)
    else:
        deciding.take_aside(ffns, outliers, thresholds.branch)
    if smoothing:
        hidden = {ffn.down.input for ffn in ffns}
        groups = shared_inputs([site for site in sites if site.input not in hidden])
        deciding.divide(groups, thresholds.division, thresholds.division_gain)
    floats |= deciding.leave_in_float(thresholds.float_parameter)
    rewritten = original.copy()
    if deciding.aside:
        OutliersPass(deciding.aside)(rewritten)
    if deciding.divisors:
        SmoothingPass(_by_site(rewritten, deciding.divisors))(rewritten)
    CleanupPass()(rewritten)
    return PreparedModel(
        model=rewritten,
        floats={name: reason for name, reason in floats.items() if reason is not None},
        outliers={name: len(neurons) for name, neurons in deciding.aside.items()},
        smoothed=tuple(deciding.smoothed),
        damage=deciding.damage,
        scales=_by_site(rewritten, deciding.scales()),
        limit=limit,
        source=original,
    )


class _Deciding:
    """What is decided about the layers that can multiply integers, one step after the other.

    Damage is in the unit of ``moments`` where all layers have one, else relative to each layer's
    own output.

    Args:
        sites: the layers.
        ranges: of their inputs, by name; they become those of what is rounded.
        moments: by the name of the node.
        limit: the largest integer of a weight.
    """

    def __init__(
        self,
        sites: Sequence[LinearSite],
        ranges: Mapping[str, InputRange],
        moments: Mapping[str, Float64],
        limit: int,
    ) -> None:
        self._sites = {site.name: site for site in sites}
        self._ranges = dict(ranges)
        self._limit = limit
        known = {site.name: moments.get(str(site.node.name)) for site in sites}
        self.in_unit = all(map(_fits, sites, known.values()))
        self._moments = known
        self.aside: dict[str, Indices] = {}
        self.divisors: dict[str, Float64] = {}
        self.smoothed: list[str] = []
        self.damage = {name: self._damage(name) for name in self._sites}

    def take_aside(self, ffns: Sequence[FFN], most: int, threshold: float) -> None:
        """Outliers of networks, by the name of the down layer, where that saves ``threshold``."""
        for name in (ffn.name for ffn in ffns if ffn.name in self._sites):
            whole, before = self._ranges[name], self.damage[name]
            found = whole.outliers(most, OUTLIER_RATIO)
            if not len(found):
                continue
            self.aside[name] = found
            self._ranges[name] = whole.without(found)
            self.damage[name] = self._damage(name)
            if before - self.damage[name] < threshold:
                del self.aside[name]
                self._ranges[name], self.damage[name] = whole, before

    def divide(self, groups: Sequence[Sequence[LinearSite]], threshold: float, gain: float) -> None:
        """Inputs that layers share, where that saves enough (see :class:`Thresholds`)."""
        for group in groups:
            names = [site.name for site in group if site.name in self._sites]
            least = 0.0 if folds(group) else threshold
            if sum(self.damage[name] for name in names) <= least:
                continue
            readers = [self._reader(name) for name in names]
            choice = smooth(self._ranges[names[0]], readers, self._limit)
            saved = choice.damage_before - choice.damage
            if saved <= least or gain * choice.damage > choice.damage_before:
                continue
            self.divisors[str(group[0].node.name)] = choice.divisor
            self.smoothed += [site.name for site in group]
            for name in names:
                self.damage[name] = self._damage(name, choice.divisor)
                self._ranges[name] = self._ranges[name].divided(choice.divisor)

    def leave_in_float(self, threshold: float) -> dict[str, str | None]:
        """Drop layers whose rounding costs more for each parameter; returns why, by name.

        And more than the average, so that some are left where time is worth next to nothing.
        """
        sizes = {n: site.in_features * site.out_features for n, site in self._sites.items()}
        average = sum(self.damage.values()) / max(sum(sizes.values()), 1)
        dropped: dict[str, str | None] = {}
        for name, size in sizes.items():
            if self.damage[name] > max(threshold, _MORE * average) * size:
                dropped[name] = "integers would cost more accuracy than the time is worth"
                del self._sites[name], self.damage[name]
        return dropped

    def scales(self) -> dict[str, InputScale]:
        """Of the inputs of each layer that multiplies integers, by the name of its node."""
        return {str(s.node.name): self._ranges[n].scale() for n, s in self._sites.items()}

    def _damage(self, name: str, divisor: Float64 | None = None) -> float:
        return rounding_damage(self._ranges[name], [self._reader(name)], divisor, self._limit)

    def _reader(self, name: str) -> Reader:
        """Of a layer's weight, without the neurons aside."""
        site = self._sites[name]
        weight = site.alpha * site.weight.array().astype(np.float64)
        weight = np.delete(weight, self.aside.get(name, _NONE), axis=0)
        if not self.in_unit:
            return Reader.relative(weight, self._ranges[name])
        return Reader.of(weight, self._moments[name])


def _fits(site: LinearSite, moment: Float64 | None) -> bool:
    return moment is not None and len(moment) == site.out_features


def _by_site(model: ir.Model, by_node: Mapping[str, Value]) -> dict[str, Value]:
    """By the names of sites; these may come from weights, which get new ones: nodes keep theirs."""
    found = {str(site.node.name): site.name for site in find_sites(model).sites}
    return {found[node]: value for node, value in by_node.items() if node in found}
