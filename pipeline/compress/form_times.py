"""What a branch, a division, a parameter in float take: timed on whole models, in turn.

Time is counted in parameters: how many more parameters of layers that multiply integers would take
as long. An allocation of parameters has a multiplier, the damage that one more of them would
prevent (:func:`graph_passes.allocation.least_damage.multiplier`). Times it, these figures are what
each has to save (:class:`~pipeline.compress.integers.Thresholds`): one multiplier decides about
neurons, ranks, outliers, divisions and numbers.

================  =================================================================
``plain``         all layers multiply integers: what the others are held against
``fewer``         the same with half of the neurons of each network
``divided``       a Mul in front of all layers that can have one
``branches``      some neurons of each network in a branch
``floats``        no layer multiplies integers
================  =================================================================

Speed does not depend on what the numbers are: ranges are made up, and nothing runs on data.

Where the clock is not sure, divisions and branches count as cheap: they take what the 95 % interval
has at least, and a parameter what it has at most. So noise takes nothing away that keeps a model
close. Floats count as dear for the same reason, and as not to be had where they may be no slower:
a model of floats is a form of its own.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from compress_onnx.graph_passes.factorization.neurons import Folded
from compress_onnx.graph_passes.factorization.rounding import InputScale
from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass
from compress_onnx.graph_passes.rewriting.integers import IntegerForm, IntegersPass, why_float
from compress_onnx.graph_passes.rewriting.neurons import NeuronsPass
from compress_onnx.graph_passes.rewriting.outliers import OutliersPass
from compress_onnx.graph_passes.rewriting.smoothing import SmoothingPass, folds, shared_inputs
from compress_onnx.graph_passes.sites.ffn import FFN, find_ffns
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.pipeline.compress.integers import OUTLIERS, Thresholds
from compress_onnx.pipeline.files.original import Original

LEAST_SHARE = 0.1
"""Of the time that a parameter would take if the layers took all of it: what it takes at least."""

_SCALE = InputScale(np.float32(0.05), np.uint8(128))

Make = Callable[[], ir.Model]


class Speed(NamedTuple):
    """How many times as fast, with the ends of the 95 % interval."""

    value: float
    low: float
    high: float


Speedups = Callable[[Mapping[str, Make]], Mapping[str, Speed]]
"""Times models in turn: the speed of each over the first."""


@dataclass(frozen=True)
class FormTimes:
    """What parts of a model take, in parameters of layers that multiply integers.

    Attributes:
        division: a Mul in front of layers.
        branch: a branch of outliers.
        float_parameter: a parameter of a layer in float, beyond what it takes as an integer;
            infinite where floats may be no slower.
    """

    division: float
    branch: float
    float_parameter: float

    def __str__(self) -> str:
        """In words."""
        text = (
            f"a division takes at least as long as {self.division:,.0f} parameters of layers that "
            f"multiply integers, a branch of outliers as long as {self.branch:,.0f}"
        )
        if math.isinf(self.float_parameter):
            return text
        return (
            f"{text}; a parameter in float takes at most as long as {1 + self.float_parameter:.1f}"
        )

    def thresholds(self, multiplier: float) -> Thresholds:
        """The damage that each has to save, where a parameter saves ``multiplier``."""
        return Thresholds(
            division=multiplier * self.division,
            branch=multiplier * self.branch,
            float_parameter=max(multiplier, sys.float_info.min) * self.float_parameter,
        )


def measure_form_times(
    original: Original, speedups: Speedups, form: IntegerForm = "fused"
) -> FormTimes | None:
    """Time the module's models; None where there is no network that could lose neurons.

    Args:
        original: the model.
        speedups: times models.
        form: which operators multiply integers.
    """
    sites = [site for site in original.table.sites if _rounds(site)]
    networks = [f for f in find_ffns(original.table.sites).ffns if all(map(_rounds, f.sites))]
    networks = [ffn for ffn in networks if ffn.neurons > 2 * OUTLIERS]
    if not networks:
        return None
    groups = _divisible(sites, networks)
    variants = _Variants(original, [s.name for s in sites], [f.name for f in networks], form)
    found = speedups(
        {
            "plain": variants.plain,
            "fewer": variants.fewer,
            "divided": variants.divided,
            "branches": variants.branches,
            "floats": original.copy,
        }
    )
    total = sum(site.in_features * site.out_features for site in sites)
    removed = sum(ffn.parameters_per_neuron * (ffn.neurons // 2) for ffn in networks)
    parameter = max((1 - 1 / found["fewer"].high) / removed, LEAST_SHARE / total)

    def least(name: str, parts: int) -> float:
        """Of one of so many parts: what it takes at least, in parameters."""
        return max(1 / found[name].high - 1, 0) / max(parts, 1) / parameter

    slower = 1 / found["floats"].low - 1
    return FormTimes(
        division=least("divided", len(groups)),
        branch=least("branches", len(networks)),
        float_parameter=slower / total / parameter if slower > 0 else math.inf,
    )


def _rounds(site: LinearSite) -> bool:
    return not site.nested and why_float(site) is None


def _divisible(sites: Sequence[LinearSite], networks: Sequence[FFN]) -> list[list[LinearSite]]:
    """Layers that share an input that no network makes, and whose division takes a Mul."""
    hidden = {ffn.down.input for ffn in networks}
    groups = shared_inputs([site for site in sites if site.input not in hidden])
    return [group for group in groups if not folds(group)]


@dataclass(frozen=True)
class _Variants:
    """The models to time, made when they are asked for.

    Attributes:
        original: what they are made from.
        sites: the names of the layers that multiply integers.
        networks: those of the down layers of networks.
        form: which operators.
    """

    original: Original
    sites: Sequence[str]
    networks: Sequence[str]
    form: IntegerForm

    def plain(self) -> ir.Model:
        return self._rounded(self.original.copy())

    def fewer(self) -> ir.Model:
        model, folded = self.original.copy(), {}
        for ffn in self._networks_of(model):
            kept = np.arange(ffn.neurons - ffn.neurons // 2)
            weight = ffn.down.weight.array()[kept].astype(np.float64)
            folded[ffn.name] = Folded(kept, weight, np.zeros(ffn.down.out_features))
        NeuronsPass(folded, biases=False)(model)
        return self._rounded(model)

    def divided(self) -> ir.Model:
        model = self.original.copy()
        sites = [site for site in find_sites(model).sites if site.name in self.sites]
        groups = _divisible(sites, self._networks_of(model))
        halves = {group[0].name: np.full(group[0].in_features, 2.0) for group in groups}
        SmoothingPass(halves)(model)
        return self._rounded(model)

    def branches(self) -> ir.Model:
        model = self.original.copy()
        OutliersPass({name: np.arange(OUTLIERS) for name in self.networks})(model)
        return self._rounded(model)

    def _networks_of(self, model: ir.Model) -> list[FFN]:
        found = find_ffns(find_sites(model).sites).ffns
        return [ffn for ffn in found if ffn.name in self.networks]

    def _rounded(self, model: ir.Model) -> ir.Model:
        CleanupPass()(model)
        layers = [site.name for site in find_sites(model).sites if _rounds(site)]
        IntegersPass(dict.fromkeys(layers, _SCALE), self.form)(model)
        CleanupPass()(model)
        return model
