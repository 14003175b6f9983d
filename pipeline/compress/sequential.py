"""Sequential calibration: later sites repair what earlier ones broke, in closed form.

Sites are factored in execution order. The inputs x' of a site come from the model as compressed so
far, its targets from the original: with weights w over the positions, centred moments
``C' = E_w[x'x'ᵀ]`` and ``D = E_w[x'xᵀ]``, and a damping λ in mean eigenvalues of C', the dense
weight that repairs most is ::

    T = (C' + λ)⁻¹ (D·W + λ·W)

and T is what the method factors, in the metric of C'. Where a layer narrows, ``D·W`` is summed up
as it is, ``E_w[x'(Wᵀx)ᵀ]``, which is fewer numbers. The bias takes over the means, so that the
mean output is the original's. λ pulls towards the original weight where the data says little. It is
never less than what rounding makes of inputs that do not vary at all, so that C' + λ can always be
inverted, and T is W where there is nothing to learn from.

The graph is cut in front of each group of sites that read one value. What is alive at a cut is kept
for all samples, of the original and of the compressed model; a segment leads from cut to cut and
runs once for each. So the whole costs two forward runs and the moments, however many sites there
are, and memory for what is alive at the widest cut that is kept (rule 3).

Rules:

1. Only factored sites of plain matrices that shifts can reach take part. A weight that several
   sites share is left to the plain way of factoring, because it can repair only one of them; so is
   a stack of matrices, and a site that no gradient reaches where others have some.
2. Positions are weighted with the squared norm of the outputs' gradients where there are any, else
   padding counts as nothing and all else alike; both times the weight of their set.
3. Shrinkage towards the identity is λ for the target, ``λ = a / (1 − a)`` beside the λ above, and
   also in the metric that T is factored in.
4. What is alive in front of sites that narrow, K > N, such as the neurons of a network, is looked
   at and not kept: the nodes that lead there run once more with the next segment. Never twice in a
   row, so that no node runs more than twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from scipy import linalg

from compress_onnx.graph_passes.arrays import Array, Float64, Indices
from compress_onnx.graph_passes.factorization import (
    Factorization,
    GradientStats,
    PairedAccumulator,
    PairedStats,
    make_method,
)
from compress_onnx.graph_passes.factorization.neurons import Folded
from compress_onnx.graph_passes.factorization.symmetric import ridged
from compress_onnx.graph_passes.planning.decompositions import Decompositions
from compress_onnx.graph_passes.planning.plan import CompressionPlan, SitePlan
from compress_onnx.graph_passes.sites.grouping import group_by_weight
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.pipeline.evidence.mixture import Weighted
from compress_onnx.pipeline.evidence.segments import reads_of, segment_model
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.evidence.shifts import (
    can_shift,
    referring,
    shift_outputs,
    weights_outside,
    without_slack,
)
from compress_onnx.pipeline.files.original import Original
from compress_onnx.pipeline.runtime.batches import POSITIONS, check_samples, model_batches
from compress_onnx.pipeline.runtime.inner_values import interface
from compress_onnx.pipeline.runtime.memory import return_freed
from compress_onnx.pipeline.runtime.padding import real_weights
from compress_onnx.pipeline.runtime.protobuf import serialized
from compress_onnx.pipeline.runtime.samples import Batch
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run
from compress_onnx.pipeline.runtime.threads import matmul, side_by_side

Values = dict[str, Array]
Weights = Mapping[str, Sequence[NDArray[np.float32]]]

DAMPING = 0.03
"""λ, in mean eigenvalues of the inputs' covariance."""

_ROUNDING = 1e-12
"""The least λ, in mean squares of the inputs: well above the square of float32's precision."""


@dataclass(frozen=True)
class Repaired:
    """What was made with the errors of earlier sites in sight.

    Attributes:
        factors: by weight key.
        networks: what stays of feed-forward networks, by the name of the down layer.
    """

    factors: dict[str, Factorization] = field(default_factory=dict)
    networks: dict[str, Folded] = field(default_factory=dict)

    def add(self, site: LinearSite, made: Factorization | Folded) -> None:
        """Note what was ``made`` of ``site``."""
        if isinstance(made, Folded):
            self.networks[site.name] = made
        else:
            self.factors[site.weight.key] = made


@dataclass(frozen=True)
class _Group:
    """Consecutive sites that read one value, and where the graph is cut in front of them."""

    cut: int
    sites: tuple[LinearSite, ...]


@dataclass
class _Side:
    """One of the two models on its way through the segments: what is alive, batch by batch."""

    proto: onnx.ModelProto
    data_folder: Path
    spec: SessionSpec
    alive: list[Values]


def factor_sequentially(
    original: Original,
    plan: CompressionPlan,
    decompositions: Decompositions,
    sets: Sequence[Weighted],
    settings: RunSettings,
    *,
    weights: Weights | None = None,
    identity: float = 0.0,
    damping: float = DAMPING,
) -> Repaired:
    """Carry ``plan`` out weight by weight, each with the errors of the earlier ones in sight.

    Args:
        original: the model; never changed.
        plan: ranks and methods.
        decompositions: of the weights, with what is known about their inputs.
        sets: the calibration data, and whatever counts beside it.
        settings: how the segments are run; in the batches that ``weights`` were collected with.
        weights: by site name, for each batch of ``sets`` the weight of each position.
        identity: how strongly moments are pulled towards the identity.
        damping: λ.

    Returns:
        Nothing about shared weights and nested sites.

    Raises:
        DataError: the samples do not fit the model, or a value is NaN or infinite.
    """
    planned = {site.site: site for site in (*plan.factored, *plan.thinned)}
    groups = group_by_weight(original.table.sites)
    single = {key for key, members in groups.items() if len(members) == 1}
    sites = [
        site
        for site in original.table.sites
        if site.name in planned
        and can_shift(site)
        and not site.weight.stacked
        and site.weight.key in single
        and (weights is None or any(map(np.any, weights.get(site.name, ()))))
    ]
    done, proto = Repaired(), referring(original.model, original.data_folder)
    with weights_outside(proto, original.data_folder) as (proto, folder):
        spec = settings.session
        session = open_session(interface(original.model), spec)
        batches: list[Batch] = []
        counts: list[float] = []  # how often each position of a batch counts
        for each in sets:
            check_samples(session, each.samples)
            made_of = list(model_batches(session, each.samples, settings.batch_size, POSITIONS))
            batches += made_of
            counts += [each.weight] * len(made_of)
        del session
        shifts = shift_outputs(proto, sites)
        exact = _Side(proto, folder, spec, [dict(batch.feeds) for batch in batches])
        compressed = _Side(_copy(proto), folder, spec, [dict(batch.feeds) for batch in batches])
        repair = _Repair(planned, decompositions, identity, damping)
        count, start, kept = 0, 0, True
        with settings.progress.step("factor in sequence", len(sites)) as update:
            for group in _groups(proto, sites):
                kept = not (kept and _is_wide(group))
                found = _Found(group.sites, repair.neurons(group.sites), counts, weights)
                reached = (_alive_at(side, start, group.cut) for side in (exact, compressed))
                for index, (batch, *values) in enumerate(zip(batches, *reached, strict=True)):
                    found.add(index, batch, *values)
                    if kept:
                        exact.alive[index], compressed.alive[index] = map(_owned, values)
                if kept:
                    start = group.cut
                    for side in (exact, compressed):
                        _forget(side, start)
                repaired_sites = side_by_side(partial(repair.site, found), group.sites)
                for site, made in zip(group.sites, repaired_sites, strict=True):
                    done.add(site, made)
                    _install(compressed, site, shifts[site.name], made)
                    count += 1
                    update(count)
                return_freed()
    return done


@dataclass(frozen=True)
class _Repair:
    """How sites are repaired.

    Attributes:
        planned: what becomes of each, by name.
        decompositions: of their weights.
        identity: how strongly moments are pulled towards the identity.
        damping: λ.
    """

    planned: Mapping[str, SitePlan]
    decompositions: Decompositions
    identity: float
    damping: float

    def neurons(self, sites: Sequence[LinearSite]) -> dict[str, Indices]:
        """``[k]`` those of its inputs that stay, for each of ``sites`` that loses some."""
        plans = {site.name: self.planned[site.name] for site in sites}
        return {
            site.name: self.decompositions.kept_neurons(site, plans[site.name])
            for site in sites
            if plans[site.name].decision == "neurons"
        }

    def site(self, found: _Found, site: LinearSite) -> Factorization | Folded:
        """What stands for ``site``, which ``found`` was collected at."""
        moments, plan = found.moments(site, self.identity), self.planned[site.name]
        if plan.decision == "neurons":
            return self._fold(self.decompositions.folded(site, plan), moments)
        return self._factor(site, plan, moments)

    def _factor(self, site: LinearSite, plan: SitePlan, moments: PairedStats) -> Factorization:
        assert plan.method is not None
        assert plan.rank is not None
        weight, inputs = site.weight.array(), moments.first
        target = self._target(weight.astype(np.float64), moments)
        seen, gradients = inputs, self.decompositions.stats[site.name].gradients
        if gradients is not None:
            seen = replace(inputs, gradients=GradientStats(inputs, gradients.outer))
        method = make_method(plan.method.name, plan.method.options)
        factorization = method.decompose(target.astype(weight.dtype), seen).factorize(
            plan.rank, plan.store
        )
        if not method.corrects_bias:
            return factorization
        bias = moments.second_mean - inputs.mean @ factorization.product()
        return replace(factorization, bias=bias)

    def _fold(self, plain: Folded, moments: PairedStats) -> Folded:
        """The down layer for the neurons that the original chooses, repaired on them alone."""
        target = self._target(plain.weight, moments)
        bias = moments.second_mean - moments.first.mean @ target
        return Folded(plain.kept, target, bias)

    def _target(self, weight: Float64, moments: PairedStats) -> Float64:
        """``[K, N]`` T, with λ towards ``weight``."""
        inputs = moments.first
        least = _ROUNDING * float(inputs.mean @ inputs.mean) / len(inputs.mean)
        return repaired(weight, inputs.covariance, moments.cross, self.damping, least)


def repaired(
    weight: Float64, covariance: Float64, wanted: Float64, damping: float, least: float = 0.0
) -> Float64:
    """``[K, N]`` the dense weight T of the module's formula.

    Args:
        weight: ``[K, N]`` W, towards which λ pulls.
        covariance: ``[K, K]`` C' of the inputs as they are.
        wanted: ``[K, N]`` D·W, how these go along with the original outputs.
        damping: λ in mean eigenvalues of C'; W itself is the answer where C' is zero.
        least: a λ that rounding calls for.
    """
    size = len(covariance)
    ridge = max(damping * float(np.trace(covariance)) / size, least)
    if ridge <= 0:
        return weight
    # A transpose is as LAPACK has it, which then needs no copy.
    half = linalg.cho_factor(ridged(covariance, ridge).T, overwrite_a=True)
    solved: Float64 = linalg.cho_solve(half, wanted + ridge * weight)
    return solved


class _Found:
    """Of x' and the original outputs of each of ``sites``, weighted, batch by batch.

    Where a site narrows, outputs are summed up, else the inputs, whichever are fewer numbers.

    Args:
        sites: that read one value.
        neurons: by site, those of the inputs x' that stay; all where it is not named.
        counts: how often each position of a batch counts.
        weights: by site, for each batch the weight of each position.
    """

    def __init__(
        self,
        sites: Sequence[LinearSite],
        neurons: Mapping[str, Indices],
        counts: Sequence[float],
        weights: Weights | None,
    ) -> None:
        self._sites = sites
        self._neurons = neurons
        self._counts = counts
        self._weights = weights
        self._through = {site.name: site.weight.array() for site in sites if _narrows(site)}
        self._accumulators = {
            site.name: PairedAccumulator(
                len(neurons[site.name]) if site.name in neurons else site.in_features,
                min(site.in_features, site.out_features),
                name=repr(site.input.name),
            )
            for site in sites
        }

    def add(self, index: int, batch: Batch, original: Values, compressed: Values) -> None:
        """Add what is alive in both models in batch ``index``."""
        jobs: list[Callable[[], None]] = []
        for site in self._sites:
            value, features = site.input.name or "", site.in_features
            pair = compressed[value], original[value]
            # Features last: [..., T, K].
            ours, theirs = (np.swapaxes(v, -1, -2) if site.transpose_input else v for v in pair)
            weight = (
                real_weights(ours, batch.mask)
                if self._weights is None
                else self._weights[site.name][index]
            ).reshape(-1) * np.float32(self._counts[index])
            real = weight > 0
            # The real rows alone: [n, K].
            x, y = (side.reshape(-1, features)[real] for side in (ours, theirs))
            if site.name in self._neurons:
                x = x[:, self._neurons[site.name]]  # [n, k]
            if site.name in self._through:
                y = matmul(y, self._through[site.name])  # [n, N]
            jobs += self._accumulators[site.name].jobs(x, y, weight[real])
        side_by_side(lambda job: job(), jobs)

    def moments(self, site: LinearSite, identity: float) -> PairedStats:
        """Those of x' and ``x·W`` of ``site``, over all batches, pulled; they go from here."""
        found, weight = self._accumulators.pop(site.name).result(), site.weight.array()
        if site.name not in self._through:
            found = found.through(weight)
        return found.shrunk(identity, weight[self._neurons.get(site.name, slice(None))])


def _narrows(site: LinearSite) -> bool:
    return site.in_features > site.out_features


def _is_wide(group: _Group) -> bool:
    """Whether what is alive in front of ``group`` had better not be kept (rule 4)."""
    return all(map(_narrows, group.sites))


def _groups(proto: onnx.ModelProto, sites: Sequence[LinearSite]) -> Iterator[_Group]:
    """Sites in the order of the graph's nodes, those that read one value together."""
    # The node in front of the Add that shifts a site's output is the site itself.
    place = {name: i - 1 for i, node in enumerate(proto.graph.node) for name in node.output}
    at = {site.name: place[site.node.outputs[0].name or ""] for site in sites}
    ordered = sorted(sites, key=lambda site: at[site.name])
    for _, members in groupby(ordered, key=lambda site: site.input.name):
        group = tuple(members)
        yield _Group(at[group[0].name], group)


def _alive_at(side: _Side, start: int, stop: int) -> Iterator[Values]:
    """Run the nodes from ``start`` to ``stop``; yields what is alive afterwards, by batch."""
    graph = side.proto.graph
    wanted = reads_of(graph.node[stop:])
    made = {name for node in graph.node[start:stop] for name in node.output}
    outputs = sorted(made & wanted)
    session, names = None, []
    if outputs:
        segment = segment_model(side.proto, range(start, stop), side.alive[0], outputs)
        session = open_session(serialized(segment), side.spec, data_folder=side.data_folder)
        names = [value.name for value in session.get_inputs()]
    for values in side.alive:
        found = {name: value for name, value in values.items() if name in wanted}
        if session is not None:
            found |= run(session, {name: values[name] for name in names}, outputs)
        yield found


def _owned(values: Values) -> Values:
    """Copies: an output of ONNX Runtime keeps the arena alive that its session computed in."""
    return {name: value.copy() for name, value in values.items()}


def _forget(side: _Side, start: int) -> None:
    """Let the weights go that no node from ``start`` on reads."""
    graph = side.proto.graph
    wanted = reads_of(graph.node[start:])
    for place in reversed(range(len(graph.initializer))):
        if graph.initializer[place].name not in wanted:
            del graph.initializer[place]
    side.proto = without_slack(side.proto)


def _install(side: _Side, site: LinearSite, shift: str, made: Factorization | Folded) -> None:
    """Put what was ``made`` of ``site``, and the new mean, into a model of dense weights."""
    output = site.node.outputs[0].name or ""
    add = next(i for i, node in enumerate(side.proto.graph.node) if output in node.output)
    node = side.proto.graph.node[add - 1]
    dtype = site.weight.array().dtype
    dense = made.dense(site.in_features) if isinstance(made, Folded) else made.product()
    weight = dense.astype(dtype)  # [K, N]
    node.input[1] = f"{output}.compressed"
    _set_initializer(side.proto, node.input[1], weight.T if _transposes(node) else weight)
    if made.bias is not None:
        _set_initializer(side.proto, shift, (site.alpha * made.bias).astype(dtype))


def _set_initializer(proto: onnx.ModelProto, name: str, array: Array) -> None:
    tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
    for old in proto.graph.initializer:
        if old.name == name:
            old.CopyFrom(tensor)
            return
    proto.graph.initializer.append(tensor)


def _transposes(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy
