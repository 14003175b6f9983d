"""What every contestant works with: one model, its data, and the weights that may be factored.

Rules that hold for all of them:

1. The budget counts the parameters of the selected weights: r·(K + N) for a factored one, K·N for
   one that stays dense. Biases are not counted; most methods do not change them.
2. Ranks are multiples of the recipe's ``rank_multiple``.
3. Neither model has weights that several sites share, nor stacks of them: both are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from compress_onnx.graph_passes.allocation import Candidate
from compress_onnx.graph_passes.allocation.uniform import uniform
from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization import ActivationStats
from compress_onnx.graph_passes.planning.plan import CompressionPlan, MethodSpec, SitePlan
from compress_onnx.graph_passes.planning.planner import make_plan
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.sites.grouping import group_by_weight
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.pipeline.compress.learn import Learned, learn
from compress_onnx.pipeline.evidence.objective import Objective
from compress_onnx.pipeline.evidence.sensitivity import Probe, probing_samples
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.evidence.shifts import self_contained
from compress_onnx.pipeline.files.original import Original
from compress_onnx.pipeline.recipes.single import ModelExperiment, requested
from compress_onnx.pipeline.runtime.samples import Samples

Ranks = Mapping[str, int | None]
"""A rank for each weight's key; None leaves it dense."""


@dataclass(frozen=True)
class Layer:
    """A selected weight [K, N], and what calibration knows about its inputs."""

    site: LinearSite
    stats: ActivationStats

    @property
    def key(self) -> str:
        """Identifies the weight."""
        return self.site.weight.key

    @cached_property
    def weight(self) -> Array:
        """``[K, N]``."""
        return self.site.weight.array()

    @property
    def candidate(self) -> Candidate:
        """The weight as rank allocators see it."""
        return Candidate(self.key, self.site.in_features, self.site.out_features)


@dataclass(frozen=True)
class Laboratory:
    """A model, and all that is known about it.

    Attributes:
        experiment: the model and its data.
        probes: on how many calibration samples the searches measure.
    """

    experiment: ModelExperiment
    probes: int

    @property
    def learned(self) -> Learned:
        """What running the model on the calibration data told."""
        return self.experiment.learned

    @cached_property
    def weights_alone(self) -> Learned:
        """The same model without any data, for methods that bring what they know themselves."""
        return learn(self.original, settings=self.settings)

    @property
    def original(self) -> Original:
        """The model as it was; contestants read it and leave it as it is."""
        return self.learned.original

    @property
    def settings(self) -> RunSettings:
        """How the model is run."""
        return self.experiment.settings

    @property
    def samples(self) -> Samples:
        """The calibration data."""
        assert self.learned.samples is not None
        return self.learned.samples

    @cached_property
    def base(self) -> CompressionSpec:
        """What the recipe says about sites, ranks and objective; the method is the contestant's."""
        return requested(self.experiment.recipe.compression.plain, self.experiment.recipe.metric)

    @property
    def objective(self) -> Objective:
        """What about the outputs matters where there are no labels."""
        return self.base.objective or "positions"

    @cached_property
    def layers(self) -> Sequence[Layer]:
        """The selected weights, in the order of the graph.

        Raises:
            RequestError: a weight is shared, or a stack.
        """
        selected = {site.site for site in self._plan(0.5).selected}
        stats = self.learned.stats
        groups = group_by_weight(self.original.table.sites)
        sites = [site for site in self.original.table.sites if site.name in selected]
        for site in sites:
            if len(groups[site.weight.key]) > 1 or site.weight.stacked:
                raise RequestError(f"{site.name} has a weight of more than one use: exclude it")
        return tuple(Layer(site, stats[site.name]) for site in sites)

    @property
    def candidates(self) -> Sequence[Candidate]:
        """The selected weights as rank allocators see them."""
        return [layer.candidate for layer in self.layers]

    @property
    def multiple(self) -> int:
        """What ranks are multiples of."""
        return self.base.rank_multiple

    def uniform(self, share: float) -> Ranks:
        """The same share for each weight."""
        return uniform(self.candidates, share, self.multiple)

    def plan(self, share: float, ranks: Ranks) -> CompressionPlan:
        """A plan with ``ranks``.

        Its method is the registered ``svd``, as a plan has to name one; the factorizations that go
        with it are the contestant's.
        """
        plan = self._plan(share)
        sites = tuple(
            _with_rank(s, ranks[s.weight]) if s.weight in ranks else s for s in plan.sites
        )
        return plan.model_copy(update={"sites": sites})

    def _plan(self, share: float) -> CompressionPlan:
        changes = {
            "method": MethodSpec(name="svd"),
            "params": share,
            "allocation": "uniform",
            "sequential": False,
        }
        return make_plan(self.original.table, self.base.model_copy(update=changes))

    def probe(self, watched: Sequence[str] | None = None) -> Probe:
        """A probe of all layers, on some of the calibration samples."""
        proto = self_contained(self.original.model, self.original.data_folder)
        return Probe(
            proto,
            [layer.site for layer in self.layers],
            probing_samples(self.samples, self.probes),
            watched=watched,
            spec=self.settings.session,
            batch_size=self.settings.batch_size,
        )


def budget(candidates: Sequence[Candidate], share: float) -> int:
    """The parameters that ``share`` allows."""
    return int(share * sum(candidate.dense for candidate in candidates))


def cost(candidates: Sequence[Candidate], ranks: Ranks) -> int:
    """The parameters that ``ranks`` take."""
    return sum(c.dense if (rank := ranks[c.key]) is None else rank * c.cost for c in candidates)


def _with_rank(site: SitePlan, rank: int | None) -> SitePlan:
    size = site.in_features + site.out_features
    return site.model_copy(
        update={
            "decision": "dense" if rank is None else "factor",
            "reason": "chosen by the contestant",
            "rank": rank,
            "method": None if rank is None else MethodSpec(name="svd"),
            "parameters_after": site.parameters_before if rank is None else rank * size,
        }
    )
