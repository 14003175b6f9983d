"""Sequential calibration: later sites repair what earlier ones broke, in closed form.

Sites are factored in execution order. The inputs x' of a site come from the model as compressed so
far, its targets from the original: with weights w over the positions, centred moments
``C' = E_w[x'x'ᵀ]`` and ``D = E_w[x'xᵀ]``, and a damping λ in mean eigenvalues of C', the dense
weight that repairs most is ::

    T = (C' + λ)⁻¹ (D·W + λ·W)

and T is what the method factors, in the metric of C'. The bias takes over the means, so that the
mean output is the original's. λ pulls towards the original weight where the data says little. It is
never less than what rounding makes of inputs that do not vary at all, so that C' + λ can always be
inverted, and T is W where there is nothing to learn from.

The graph is cut in front of each group of sites that read one value. What is alive at a cut is kept
for all samples, of the original and of the compressed model; a segment leads from cut to cut and
runs once for each. So the whole costs two forward runs and the moments, however many sites there
are, and memory for what is alive at the widest cut.

Rules:

1. Only factored sites of plain matrices that shifts can reach take part. A weight that several
   sites share is left to the plain way of factoring, because it can repair only one of them; so is
   a stack of matrices.
2. Positions are weighted with the squared norm of the outputs' gradients where there are any, else
   padding counts as nothing and all else alike; both times the weight of their set.
3. Shrinkage towards the identity is λ for the target, ``λ = a / (1 − a)`` beside the λ above, and
   also in the metric that T is factored in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np
import onnx
from numpy.typing import NDArray
from scipy import linalg

from compress_onnx.graph_passes.arrays import Array, Float64
from compress_onnx.graph_passes.factorization import (
    ActivationStats,
    Factorization,
    GradientStats,
    PairedAccumulator,
    PairedStats,
    make_method,
)
from compress_onnx.graph_passes.factorization.neurons import Folded
from compress_onnx.graph_passes.planning.decompositions import Decompositions
from compress_onnx.graph_passes.planning.plan import CompressionPlan, SitePlan
from compress_onnx.graph_passes.sites.grouping import group_by_weight
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.pipeline.evidence.mixture import Weighted
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.evidence.shifts import can_shift, self_contained, shift_outputs
from compress_onnx.pipeline.files.original import Original
from compress_onnx.pipeline.runtime.batches import check_samples, model_batches
from compress_onnx.pipeline.runtime.padding import real_weights
from compress_onnx.pipeline.runtime.protobuf import serialized
from compress_onnx.pipeline.runtime.samples import Batch
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run

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


@dataclass(frozen=True)
class _Group:
    """Consecutive sites that read one value, and where the graph is cut in front of them."""

    cut: int
    sites: tuple[LinearSite, ...]


@dataclass(frozen=True)
class _Seen:
    """What runs through the models.

    Attributes:
        batches: of all sets, one set after the other.
        counts: for each batch, how often a position of it counts.
        weights: as :func:`factor_sequentially` takes them.
    """

    batches: Sequence[Batch]
    counts: Sequence[float]
    weights: Weights | None


@dataclass
class _Side:
    """One of the two models on its way through the segments: what is alive, batch by batch."""

    proto: onnx.ModelProto
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
    ]
    proto, spec = self_contained(original.model, original.data_folder), settings.session
    session = open_session(serialized(proto), spec)
    batches: list[Batch] = []
    counts: list[float] = []  # how often each position of a batch counts
    for each in sets:
        check_samples(session, each.samples)
        found = list(model_batches(session, each.samples, settings.batch_size))
        batches += found
        counts += [each.weight] * len(found)
    shifts = shift_outputs(proto, sites)
    exact = _Side(proto, [dict(batch.feeds) for batch in batches])
    compressed = _Side(_copy(proto), [dict(batch.feeds) for batch in batches])
    done, count, start = Repaired(), 0, 0
    seen = _Seen(batches, counts, weights)
    with settings.progress.step("factor in sequence", len(sites)) as update:
        for group in _groups(proto, sites):
            for side in (exact, compressed):
                _advance(side, start, group.cut, spec)
            start = group.cut
            for site in group.sites:
                seen = _Seen(batches, counts, weights)
                moments = _moments(site, exact, compressed, seen).shrunk(identity)
                shift, how = shifts[site.name], planned[site.name]
                if how.decision == "neurons":
                    folded = _fold(site, how, moments, decompositions, damping)
                    dense = folded.dense(site.in_features)
                    _install(compressed, site, shift, dense, folded.bias)
                    done.networks[site.name] = folded
                else:
                    stats = decompositions.stats[site.name]
                    made = _factor(site, how, moments, stats, damping)
                    _install(compressed, site, shift, made.product(), made.bias)
                    done.factors[site.weight.key] = made
                count += 1
                update(count)
    return done


def _factor(
    site: LinearSite, plan: SitePlan, moments: PairedStats, stats: ActivationStats, damping: float
) -> Factorization:
    assert plan.method is not None
    assert plan.rank is not None
    weight = site.weight.array()
    exact = weight.astype(np.float64)
    inputs = moments.first
    square = float(inputs.mean @ inputs.mean) / len(inputs.mean)
    wanted = moments.cross @ exact
    target = repaired(exact, inputs.covariance, wanted, damping, _ROUNDING * square)
    seen = inputs
    if stats.gradients is not None:
        seen = replace(inputs, gradients=GradientStats(inputs, stats.gradients.moment))
    method = make_method(plan.method.name, plan.method.options)
    factorization = method.decompose(target.astype(weight.dtype), seen).factorize(
        plan.rank, plan.store
    )
    if not method.corrects_bias:
        return factorization
    bias = moments.second_mean @ exact - inputs.mean @ factorization.product()
    return replace(factorization, bias=bias)


def _fold(
    site: LinearSite,
    plan: SitePlan,
    moments: PairedStats,
    decompositions: Decompositions,
    damping: float,
) -> Folded:
    """The down layer for the neurons that the original chooses, repaired on them alone."""
    plain = decompositions.folded(site, plan)
    kept, inputs = plain.kept, moments.first
    exact = site.weight.array().astype(np.float64)
    mean = inputs.mean[kept]
    target = repaired(
        plain.weight,
        inputs.covariance[np.ix_(kept, kept)],
        moments.cross[kept] @ exact,
        damping,
        _ROUNDING * float(mean @ mean) / len(mean),
    )
    return Folded(kept, target, moments.second_mean @ exact - mean @ target)


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
    damped = covariance + ridge * np.eye(size)
    solved: Float64 = linalg.solve(damped, wanted + ridge * weight, assume_a="pos")
    return solved


def _moments(
    site: LinearSite,
    original: _Side,
    compressed: _Side,
    seen: _Seen,
) -> PairedStats:
    """Of x' and x, weighted, over all batches."""
    name, features = site.input.name or "", site.in_features
    accumulator = PairedAccumulator(features, repr(name))
    for index, batch in enumerate(seen.batches):
        pair = [side.alive[index][name] for side in (compressed, original)]
        # Features last: [..., T, K].
        ours, theirs = (np.swapaxes(v, -1, -2) if site.transpose_input else v for v in pair)
        weight = (
            real_weights(ours, batch.mask)
            if seen.weights is None
            else seen.weights[site.name][index]
        ).reshape(-1) * np.float32(seen.counts[index])
        real = weight > 0
        # The real rows alone: [n, K].
        x, y = (value.reshape(-1, features)[real] for value in (ours, theirs))
        accumulator.update(x, y, weight[real])
    return accumulator.result()


def _groups(proto: onnx.ModelProto, sites: Sequence[LinearSite]) -> Iterator[_Group]:
    """Sites in the order of the graph's nodes, those that read one value together."""
    # The node in front of the Add that shifts a site's output is the site itself.
    place = {name: i - 1 for i, node in enumerate(proto.graph.node) for name in node.output}
    at = {site.name: place[site.node.outputs[0].name or ""] for site in sites}
    ordered = sorted(sites, key=lambda site: at[site.name])
    for _, members in groupby(ordered, key=lambda site: site.input.name):
        group = tuple(members)
        yield _Group(at[group[0].name], group)


def _advance(side: _Side, start: int, stop: int, spec: SessionSpec | None) -> None:
    """Run the nodes from ``start`` to ``stop`` on every batch; keeps what is alive afterwards."""
    graph = side.proto.graph
    wanted = _reads(graph.node[stop:])
    kept = [{n: v for n, v in values.items() if n in wanted} for values in side.alive]
    made = {name for node in graph.node[start:stop] for name in node.output}
    outputs = sorted(made & wanted)
    if outputs:
        segment = _segment(side.proto, start, stop, side.alive[0], outputs)
        session = open_session(serialized(segment), spec)
        names = [value.name for value in session.get_inputs()]
        for values, after in zip(side.alive, kept, strict=True):
            after.update(run(session, {name: values[name] for name in names}, outputs))
    side.alive = kept


def _segment(
    proto: onnx.ModelProto, start: int, stop: int, values: Values, outputs: Sequence[str]
) -> onnx.ModelProto:
    """The nodes from ``start`` to ``stop`` as a model, with inputs that look like ``values``."""
    nodes = proto.graph.node[start:stop]
    reads = _reads(nodes)
    inputs = [
        onnx.helper.make_tensor_value_info(
            name,
            onnx.helper.np_dtype_to_tensor_dtype(value.dtype),
            [None] * value.ndim,
        )
        for name, value in values.items()
        if name in reads
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "segment",
        inputs,
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [tensor for tensor in proto.graph.initializer if tensor.name in reads],
    )
    return onnx.helper.make_model(
        graph,
        opset_imports=proto.opset_import,
        ir_version=proto.ir_version,
        functions=proto.functions,
    )


def _reads(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    """All names that ``nodes`` read, those of their nested graphs included."""
    names: set[str] = set()
    for node in nodes:
        names.update(node.input)
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                names |= _reads(graph.node) | {value.name for value in graph.output}
    return names


def _install(
    side: _Side, site: LinearSite, shift: str, weight: Float64, bias: Float64 | None
) -> None:
    """Put ``weight`` [K, N], and the new mean, into a model of dense weights."""
    output = site.node.outputs[0].name or ""
    add = next(i for i, node in enumerate(side.proto.graph.node) if output in node.output)
    node = side.proto.graph.node[add - 1]
    dtype = site.weight.array().dtype
    product = weight.astype(dtype)
    node.input[1] = f"{output}.compressed"
    _set_initializer(side.proto, node.input[1], product.T if _transposes(node) else product)
    if bias is not None:
        _set_initializer(side.proto, shift, (site.alpha * bias).astype(dtype))


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
