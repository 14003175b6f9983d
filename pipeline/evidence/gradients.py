"""Gradients of the model's outputs at every linear site, for any ONNX graph.

One backward pass a batch (:mod:`pipeline.evidence.adjoint`) gives, for random signs s over the
outputs o, the gradient ``g = ∂(sᵀo)/∂y`` at every site's output y, and ``E[g gᵀ]`` over s is the
Gauss-Newton matrix of the squared change of the outputs.

What the signs are drawn over is the :mod:`~pipeline.evidence.objective`. Padding positions are
never seeded, so what does not reach a real position has gradient zero and weight zero in all
statistics. So have the rows of tokens that a router sent to another expert: their gate of zero is
in the gradient, and each matrix of a stack has the statistics of the rows that matter to it. Other
seeds than signs give the gradients of other functions of the outputs (:func:`backward`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from compress_onnx.graph_passes.arrays import Array, Float32
from compress_onnx.graph_passes.errors import NotDifferentiableError
from compress_onnx.graph_passes.factorization import (
    GradientStats,
    MomentAccumulator,
)
from compress_onnx.graph_passes.factorization.symmetric import GramSum
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.pipeline.evidence.adjoint import Adjoint, is_prepared, prepared
from compress_onnx.pipeline.evidence.objective import Objective, signs
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.evidence.shifts import (
    can_shift,
    referring,
    self_contained,
    weights_outside,
)
from compress_onnx.pipeline.evidence.stacks import part
from compress_onnx.pipeline.evidence.stored import (
    arrays_of,
    arrays_of_moment,
    moment_of,
    stats_of,
)
from compress_onnx.pipeline.files.cache import content_key
from compress_onnx.pipeline.files.original import Original
from compress_onnx.pipeline.runtime.batches import POSITIONS, check_samples, model_batches
from compress_onnx.pipeline.runtime.inner_values import exposed
from compress_onnx.pipeline.runtime.memory import return_freed
from compress_onnx.pipeline.runtime.samples import Batch, Samples
from compress_onnx.pipeline.runtime.session import open_session, run
from compress_onnx.pipeline.runtime.threads import side_by_side

Seeding = Callable[[Array, Batch], Float32]
"""The adjoint that an output starts from, of the output's shape, given its value."""

_ADVICE = "use the method asvd, with --allocation sensitivity to measure instead"


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


@dataclass(frozen=True)
class SiteValues:
    """One batch at one site: inputs ``[..., K]``, and the gradient ``[..., N]`` at its output."""

    inputs: Array
    gradient: Float32


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
    collector = _Collector(flat)
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
            done += len(batch.index)
            update(done)
    return_freed()
    found = collector.result(len(samples))
    if cache is not None:
        cache.put(key, _pack(found))
    return found


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
        ModelFileError: the model is too large.
        DataError: the samples do not fit the model.
    """
    values = {site.name: site.node.outputs[0].name or "" for site in sites}
    inputs = {site.name: site.input.name or "" for site in sites}
    graph = referring(original.model, original.data_folder)
    if not is_prepared(graph):
        graph = self_contained(original.model, original.data_folder)
    graph = prepared(graph)
    outputs = [value.name for value in graph.graph.output if _is_float(value)]
    fed = {value.name for value in graph.graph.input}
    with weights_outside(graph, original.data_folder) as folder:
        adjoint = Adjoint(
            graph,
            list(values.values()),
            outputs,
            beside=[name for name in inputs.values() if name not in fed],
            advice=_ADVICE,
            spec=settings.session,
            data_folder=folder,
        )
        plain = open_session(
            exposed(original.model, ()), settings.session, data_folder=original.data_folder
        )
        check_samples(plain, samples)
        for batch in model_batches(plain, samples, settings.batch_size, POSITIONS):
            found = run(plain, batch.feeds, outputs)
            seeds = {name: seeding(value, batch) for name, value in found.items()}
            gradients, beside = adjoint.run(batch.feeds, seeds)
            seen = {**batch.feeds, **beside}
            yield (
                batch,
                {
                    site.name: SiteValues(
                        _rows(site, seen[inputs[site.name]]), _finite(gradients[values[site.name]])
                    )
                    for site in sites
                },
            )


def _is_float(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT)


def _rows(site: LinearSite, inputs: Array) -> Array:
    return np.swapaxes(inputs, -1, -2) if site.transpose_input else inputs


def _finite(gradient: Float32) -> Float32:
    if not np.isfinite(gradient).all():
        raise NotDifferentiableError(f"a gradient of this graph is not finite: {_ADVICE}")
    return gradient


class _Collector:
    """Accumulates both sides of every site, batch by batch."""

    def __init__(self, sites: Sequence[LinearSite]) -> None:
        self._sites = {site.name: site for site in sites}
        names = [(name, site) for site in sites for name in site.matrices]
        self._inputs = {
            name: MomentAccumulator(site.in_features, f"the input or the gradient of {name}")
            for name, site in names
        }
        self._moments = {name: GramSum(site.out_features) for name, site in names}
        self._weights: dict[str, list[Float32]] = {site.name: [] for site in sites}

    def update(self, values: Mapping[str, SiteValues]) -> None:
        side_by_side(self._update, values.items())

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

    def result(self, samples: int) -> OutputGradients:
        if not any(accumulator.count for accumulator in self._inputs.values()):
            raise NotDifferentiableError(
                f"no output has a gradient by any linear layer at these samples: {_ADVICE}"
            )
        stats = {
            matrix: self._taken(site, matrix, samples)
            for site in self._sites.values()
            for matrix in site.matrices
            if self._inputs[matrix].count
        }
        return OutputGradients(stats, self._weights)

    def _taken(self, site: LinearSite, matrix: str, samples: int) -> GradientStats:
        """What was collected about ``matrix``, at rest; it goes from here."""
        seen = self._inputs.pop(matrix).result()
        moment = self._moments.pop(matrix).total()
        moment /= samples
        return GradientStats(seen if site.corrected_bias else seen.uncentred(), moment).at_rest


def _squared_norms(gradient: Float32) -> Float32:
    norms: Float32 = np.sum(gradient * gradient, axis=-1)
    return norms


def _pack(gradients: OutputGradients) -> dict[str, Array]:
    """Arrays named ``KIND/FIELD/SITE``; a site may have slashes."""
    arrays: dict[str, Array] = {}
    for site, stats in gradients.stats.items():
        found = {"inputs": arrays_of(stats.inputs), "outputs": arrays_of_moment(stats.outer)}
        arrays |= {f"{kind}/{f}/{site}": a for kind, of in found.items() for f, a in of.items()}
    for site, batches in gradients.weights.items():
        arrays |= {f"weights/{index}/{site}": batch for index, batch in enumerate(batches)}
    return arrays


def _unpack(arrays: Mapping[str, Array]) -> OutputGradients:
    kinds: dict[str, dict[str, dict[str, Array]]] = {"inputs": {}, "outputs": {}, "weights": {}}
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
