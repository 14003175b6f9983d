"""Gradients of the model's outputs at every linear site, for any ONNX graph.

One backward pass a batch (:mod:`pipeline.evidence.adjoint`) gives, for random signs s over the
outputs o, the gradient ``g = ∂(sᵀo)/∂y`` at every site's output y, and ``E[g gᵀ]`` over s is the
Gauss-Newton matrix of the squared change of the outputs.

What the signs are drawn over is the :mod:`~pipeline.evidence.objective`. Padding positions are
never seeded, so what does not reach a real position has gradient zero and weight zero in all
statistics. So have the rows of tokens that a router sent to another expert: their gate of zero is
in the gradient, and each matrix of a stack has the statistics of the rows that matter to it. Other
seeds than signs give the gradients of other functions of the outputs
(:mod:`~pipeline.evidence.backward`). What the sums of a large model come to waits on a shelf.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from compress_onnx.graph_passes.arrays import Array, Float32, Stored
from compress_onnx.graph_passes.errors import NotDifferentiableError
from compress_onnx.graph_passes.factorization import GradientStats, MomentAccumulator
from compress_onnx.graph_passes.factorization.symmetric import GramSum
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.pipeline.evidence.backward import ADVICE, SiteValues, backward
from compress_onnx.pipeline.evidence.objective import Objective, signs
from compress_onnx.pipeline.evidence.segments import is_large
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.evidence.shifts import can_shift
from compress_onnx.pipeline.evidence.stacks import part
from compress_onnx.pipeline.evidence.stored import (
    arrays_of,
    arrays_of_moment,
    moment_of,
    shelved_gradients,
    stats_of,
)
from compress_onnx.pipeline.files.cache import content_key
from compress_onnx.pipeline.files.original import Original
from compress_onnx.pipeline.files.shelf import Shelf
from compress_onnx.pipeline.runtime.memory import return_freed
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.threads import side_by_side


@dataclass(frozen=True)
class OutputGradients:
    """What every site means to the model's outputs.

    Attributes:
        stats: by matrix name.
        weights: by site name, for each batch the squared norm ‖g‖² at each position; the shape of
            the site's output without its last axis.
    """

    stats: Mapping[str, GradientStats]
    weights: Mapping[str, Sequence[Float32]]


def output_gradients(
    original: Original,
    samples: Samples,
    settings: RunSettings,
    objective: Objective = "positions",
) -> OutputGradients:
    """Collect the gradients at the outputs of all sites of ``original`` that shifts can reach.

    Args:
        original: the model; never changed.
        samples: the calibration data.
        settings: how it is run; the seed is that of the random signs.
        objective: what about the outputs matters.

    Returns:
        Nothing about sites that shifts cannot reach; without any other, nothing is run.

    Raises:
        NotDifferentiableError: an operator has no gradient, all gradients are zero or one is not
            finite, or the model is too large.
        DataError: the samples do not fit the model.
    """
    flat = [site for site in original.table.sites if can_shift(site)]
    if not flat:
        return OutputGradients({}, {})
    names = "\n".join(f"{site.name} {site.node.name}" for site in flat)
    mask = samples.mask_name or ""
    cache, seed = settings.cache, settings.seed
    key = content_key(
        "gradients 3",
        original.digest,
        mask,
        names,
        objective,
        f"{seed} {settings.batch_size}",
        samples.inputs,
    )
    stored = cache.get(key) if cache is not None else None
    if stored is not None:
        return _unpack(stored)
    collector = _Collector(flat, len(samples), Shelf() if is_large(original) else None)
    rng = np.random.default_rng(seed)
    done = 0
    with settings.progress.step("differentiate", len(samples)) as update:
        for batch, values in backward(
            original,
            flat,
            samples,
            lambda value, batch: signs(value, batch, objective, rng),
            settings,
        ):
            collector.update(values)
            done += len(batch.index) * len(values)
            update(done // len(flat))
    return_freed()
    found = collector.result()
    if cache is not None:
        cache.put(key, _pack(found))
    return found


class _Collector:
    """Accumulates both sides of every site, batch by batch.

    The sums of some sites are done as soon as values of others come.

    Args:
        sites: whose values come.
        samples: how many there are.
        shelf: where statistics wait; None for in memory.
    """

    def __init__(self, sites: Sequence[LinearSite], samples: int, shelf: Shelf | None) -> None:
        self._sites = {site.name: site for site in sites}
        self._samples = samples
        self._shelf = shelf
        self._inputs: dict[str, MomentAccumulator] = {}
        self._moments: dict[str, GramSum] = {}
        self._weights: dict[str, list[Float32]] = {site.name: [] for site in sites}
        self._stats: dict[str, GradientStats] = {}

    def update(self, values: Mapping[str, SiteValues]) -> None:
        if any(not self._weights[name] for name in values):
            self._finish()
            self._begin(values)
        side_by_side(self._update, values.items())

    def _begin(self, names: Iterable[str]) -> None:
        for site in (self._sites[name] for name in names):
            for name in site.matrices:
                about = f"the input or the gradient of {name}"
                self._inputs[name] = MomentAccumulator(site.in_features, about)
                self._moments[name] = GramSum(site.out_features)

    def _finish(self) -> None:
        """Put what was collected to rest."""
        for name in [*self._inputs]:
            inputs, moment = self._inputs.pop(name), self._moments.pop(name)
            if inputs.count:
                taken = self._taken(self._by_matrix[name], inputs, moment)
                self._stats[name] = (
                    taken if self._shelf is None else shelved_gradients(taken, self._shelf)
                )

    def _update(self, found: tuple[str, SiteValues]) -> None:
        name, (inputs, gradient) = found[0], (found[1].inputs, found[1].gradient)
        leading = self._sites[name].weight.leading
        for matrix, place in self._sites[name].matrices.items():
            self._add(matrix, part(inputs, leading, place), part(gradient, leading, place))
        self._weights[name].append(_squared_norms(gradient))

    def _add(self, matrix: str, inputs: Array, gradient: Float32) -> None:
        rows = gradient.reshape(-1, gradient.shape[-1])
        weights = _squared_norms(rows)
        real = ~(weights == 0)  # NaN is not left out: it must show
        self._inputs[matrix].update(inputs.reshape(-1, inputs.shape[-1])[real], weights[real])
        self._moments[matrix].add(rows[real])

    def result(self) -> OutputGradients:
        self._finish()
        if not self._stats:
            raise NotDifferentiableError(
                f"no output has a gradient by any linear layer at these samples: {ADVICE}"
            )
        # In the order of sites, in whichever they were collected.
        stats = {name: self._stats[name] for name in self._by_matrix if name in self._stats}
        return OutputGradients(stats, self._weights)

    @cached_property
    def _by_matrix(self) -> dict[str, LinearSite]:
        return {name: site for site in self._sites.values() for name in site.matrices}

    def _taken(self, site: LinearSite, inputs: MomentAccumulator, outer: GramSum) -> GradientStats:
        """What was collected about a matrix of ``site``, at rest."""
        seen, moment = inputs.result(), outer.total()
        moment /= self._samples
        return GradientStats(seen if site.corrected_bias else seen.uncentred(), moment).at_rest


def _squared_norms(gradient: Float32) -> Float32:
    norms: Float32 = np.sum(gradient * gradient, axis=-1)
    return norms


def _pack(gradients: OutputGradients) -> dict[str, Stored]:
    """Arrays named ``KIND/FIELD/SITE``; a site may have slashes."""
    arrays: dict[str, Stored] = {}
    for site, stats in gradients.stats.items():
        found = {"inputs": arrays_of(stats.inputs), "outputs": arrays_of_moment(stats.outer)}
        arrays |= {f"{kind}/{f}/{site}": a for kind, of in found.items() for f, a in of.items()}
    for site, batches in gradients.weights.items():
        arrays |= {f"weights/{index}/{site}": batch for index, batch in enumerate(batches)}
    return arrays


def _unpack(arrays: Mapping[str, Stored]) -> OutputGradients:
    kinds: dict[str, dict[str, dict[str, Stored]]] = {"inputs": {}, "outputs": {}, "weights": {}}
    for key, array in arrays.items():
        kind, field, site = key.split("/", 2)
        kinds[kind].setdefault(site, {})[field] = array
    stats: dict[str, GradientStats] = {}
    for site, found in kinds["inputs"].items():
        inputs = stats_of(found)
        assert inputs is not None  # only what was seen is kept
        stats[site] = GradientStats(inputs, moment_of(kinds["outputs"][site]))
    weights = {
        site: [np.asarray(batch, np.float32) for batch in batches.values()]
        for site, batches in kinds["weights"].items()
    }
    return OutputGradients(stats, weights)
