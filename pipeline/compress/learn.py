"""Learn once, compress to any budget.

    learn(model, samples) -> Learned           the model runs over the samples
    Learned.compress(request) -> Compressed    plan and factors
    Compressed.write(path)                     the model

However many budgets are tried, the model runs over the samples once, and each weight is decomposed
once in each metric. Two things belong to a budget and are done for each: repair in sequence, which
factors what earlier sites left, and several stages, which factor what rounding left.

Rules:

1. Activations wherever there are samples.
2. Gradients where the method or the allocation goes by them. Where the model has none, ``auto``
   falls back on measured sensitivity and says so; whoever asked for gradients gets the error.
3. Sensitivities where the allocation goes by them.
4. What was learned is never changed: joining siblings and rewriting happen on copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from compress_onnx.graph_passes.allocation import get_allocator
from compress_onnx.graph_passes.errors import NotDifferentiableError, RequestError
from compress_onnx.graph_passes.factorization import ActivationStats, make_method
from compress_onnx.graph_passes.planning.decompositions import Decompositions
from compress_onnx.graph_passes.planning.fitting import check_fits
from compress_onnx.graph_passes.planning.plan import CompressionPlan
from compress_onnx.graph_passes.planning.planner import require_gain
from compress_onnx.graph_passes.planning.request import (
    CompressionSpec,
    Shrinkage,
    budget_changes,
)
from compress_onnx.graph_passes.planning.strategy import AUTO, concrete
from compress_onnx.pipeline.compress.basis import Basis, goes_by_gradients, plan_on
from compress_onnx.pipeline.compress.compressed import Compressed
from compress_onnx.pipeline.compress.enough_data import too_few_rows
from compress_onnx.pipeline.compress.meter import Meter
from compress_onnx.pipeline.compress.sequential import Repaired, factor_sequentially
from compress_onnx.pipeline.compress.siblings import rejoin, share_siblings
from compress_onnx.pipeline.compress.strength import Choice, choose_strength
from compress_onnx.pipeline.evidence.calibrate import Calibration
from compress_onnx.pipeline.evidence.collected import Evidence
from compress_onnx.pipeline.evidence.gradients import OutputGradients
from compress_onnx.pipeline.evidence.mixture import Mixture, pulled
from compress_onnx.pipeline.evidence.objective import Objective
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.original import ModelLike, Original, open_original
from compress_onnx.pipeline.measure.potential import measure_potential
from compress_onnx.pipeline.recipe import BenchmarkSpec
from compress_onnx.pipeline.results import Potential
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.threads import limited

_NOTHING_TO_SHRINK = (
    "shrinkage is of what calibration data say, and here they say nothing: give calibration data, "
    "or leave shrinkage out"
)
_NO_STATISTICS = (
    "calibration can look at no site (all are inside an If, Loop or Scan, or there are none): the "
    "weights alone decide"
)


@dataclass(frozen=True, eq=False)
class Learned:
    """A model and all that is known about it; compresses it to any budget, by any method.

    Attributes:
        original: the model as it was.
        settings: how it is run.
        evidence: what running it on samples told; None without samples.
        meter: finds out what weights take of a budget of FLOPs or latency.
        held_out: samples that nothing was learned from, on which plans are measured again; None
            without.
        broader: further sets of samples, by name, that shrinkage pulls towards; they are run when a
            request first asks for them.
    """

    original: Original
    settings: RunSettings
    evidence: Evidence | None
    meter: Meter
    held_out: Samples | None = None
    broader: Mapping[str, Samples] = field(default_factory=dict)
    _broader_kept: dict[str, Evidence] = field(default_factory=dict, repr=False)
    _mixtures: dict[Shrinkage | None, Mixture] = field(default_factory=dict, repr=False)
    _chosen: dict[str, Choice] = field(default_factory=dict, repr=False)
    _kept: dict[tuple[Mixture | None, Objective | None], Decompositions] = field(
        default_factory=dict, repr=False
    )
    _unseen_kept: dict[tuple[str, ...], Decompositions] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        """The model, its sites, and the data, in one line."""
        table = self.original.table
        data = self.calibration.origin if self.calibration else "its weights alone"
        return f"{self.original.path.name}: {len(table.sites)} linear sites, known from {data}"

    @property
    def samples(self) -> Samples | None:
        """What was learned from."""
        return self.evidence.samples if self.evidence else None

    @property
    def calibration(self) -> Calibration | None:
        """The statistics of the activations; None without samples."""
        return self.evidence.calibration if self.evidence else None

    @property
    def stats(self) -> Mapping[str, ActivationStats]:
        """Activation statistics by matrix name; none without samples."""
        return self.evidence.stats if self.evidence else {}

    def potential(self, *, timed: bool = True) -> Potential:
        """What compressing the linear layers can gain at most, and whether it is worth it.

        Args:
            timed: whether to profile the model; otherwise the bytes alone decide.
        """
        feeds = self.meter.feeds_at_several_sizes() if timed else None
        with self.settings.progress.step("profile"):
            return measure_potential(self.original, feeds, self.settings.session)

    def compress(self, request: CompressionSpec) -> Compressed:
        """Decide what every site becomes, and factor what has to be factored in sequence.

        Raises:
            RequestError: the request makes no sense for this model.
            NotDifferentiableError: gradients were asked for, and the model has none.
            NothingToCompressError: no weight can be factored with a gain.
        """
        with limited():
            basis = share_siblings(self.basis(request))
            return self._factored(basis, plan_on(basis, self.meter, self.settings.progress))

    def plan(self, request: CompressionSpec) -> CompressionPlan:
        """Decide what every site becomes, and factor nothing.

        Raises:
            CompressOnnxError: as for :meth:`compress`.
        """
        with limited():
            basis = share_siblings(self.basis(request))
            return plan_on(basis, self.meter, self.settings.progress)

    def apply(self, plan: CompressionPlan) -> Compressed:
        """Carry out a plan that was made elsewhere, or edited.

        Raises:
            RequestError: the plan does not fit the model.
            NotDifferentiableError: the plan needs gradients, and the model has none.
            NothingToCompressError: it factors nothing.
        """
        require_gain(plan)
        basis = rejoin(self._basis_of(plan), plan)
        check_fits(basis.original.table, plan)
        with limited():
            return self._factored(basis, plan)

    def basis(self, request: CompressionSpec) -> Basis:
        """What ``request`` stands on, every site by itself.

        Raises:
            NotDifferentiableError: gradients were asked for, and the model has none.
        """
        if self.evidence is None or (request.method.name == AUTO and not self.stats):
            if request.shrinkage is not None:
                raise RequestError(_NOTHING_TO_SHRINK)
            basis = Basis(
                self.original, concrete(request, "none"), self._decompositions(None, None)
            )
            return basis if self.evidence is None else basis.noting(_NO_STATISTICS)
        request, notes = self._settled(request)
        return self._basis_on(request, self._mixture(request.shrinkage), notes)

    def _basis_on(
        self, request: CompressionSpec, known: Mixture, notes: tuple[str, ...] = ()
    ) -> Basis:
        wanted, gradients = concrete(request, "gradients"), None
        if goes_by_gradients(wanted):
            try:
                gradients = known.gradients(wanted.objective or "positions")
            except NotDifferentiableError as error:
                wanted = concrete(request, "activations")
                if goes_by_gradients(wanted):
                    raise
                notes += (f"no gradients, so sensitivity is measured instead: {error}",)
        objective: Objective = wanted.objective or "positions"
        kept = self._decompositions(known, objective, gradients)
        slopes = None
        if get_allocator(wanted.allocation).damage == "sensitivity" and wanted.rank is None:
            method = make_method(wanted.method.name, wanted.method.options)
            slopes = known.slopes(method, objective, kept)
        return Basis(self.original, wanted, kept, known, gradients, slopes, notes)

    def _basis_of(self, plan: CompressionPlan) -> Basis:
        """What carrying out ``plan`` stands on."""
        request = CompressionSpec(
            sequential=plan.sequential, objective=plan.objective, shrinkage=plan.shrinkage
        )
        methods = [make_method(s.method.name, s.method.options) for s in plan.changed if s.method]
        known = gradients = None
        if self.evidence is not None:
            known = self._mixture(plan.shrinkage)
            if any(method.needs_gradients for method in methods):
                gradients = known.gradients(plan.objective)
        kept = self._decompositions(known, plan.objective, gradients)
        return Basis(self.original, request, kept, known, gradients)

    def _decompositions(
        self,
        known: Mixture | None,
        objective: Objective | None,
        gradients: OutputGradients | None = None,
    ) -> Decompositions:
        """Those that were made by what is ``known``, in the light of the gradients, if any."""
        key = known, objective if gradients is not None else None
        if key not in self._kept:
            stats = {} if known is None else known.stats
            if known is not None and gradients is not None:
                stats = known.with_gradients(gradients)
            self._kept[key] = Decompositions(stats, spread=self.settings.backend.map)
        return self._kept[key]

    def _mixture(self, shrinkage: Shrinkage | None) -> Mixture:
        """What the calibration data tell, pulled as ``shrinkage`` says.

        Raises:
            RequestError: there is nothing to pull towards.
            DataError: a broader set does not fit the model.
        """
        assert self.evidence is not None
        if shrinkage is None or not shrinkage.strength:
            shrinkage = None
        if shrinkage not in self._mixtures:
            # Of those that are pulled somewhere, one at a time: each is as large as the evidence.
            for other in [other for other in self._mixtures if other is not None]:
                self._forget(self._mixtures.pop(other))
            wanted = shrinkage is not None and shrinkage.towards == "broader"
            broader = self._evidence_of_broader() if wanted else {}
            self._mixtures[shrinkage] = pulled(self.evidence, broader, shrinkage)
        return self._mixtures[shrinkage]

    def _evidence_of_broader(self) -> Mapping[str, Evidence]:
        """What is known from each of the broader sets."""
        for name, samples in self.broader.items():
            if name not in self._broader_kept:
                with limited():
                    self._broader_kept[name] = Evidence(self.original, samples, self.settings)
        return self._broader_kept

    def _settled(self, request: CompressionSpec) -> tuple[CompressionSpec, tuple[str, ...]]:
        """The request with a strength of shrinkage, and a note where it had to be chosen."""
        if request.shrinkage is None or request.shrinkage.strength != "auto":
            return request, ()
        assert self.evidence is not None
        usual = request.model_copy(
            update={**budget_changes("params", 0.5), "sequential": False, "siblings": "never"}
        )
        key = usual.model_dump_json()
        if key not in self._chosen:
            self._chosen[key] = choose_strength(
                request.shrinkage,
                self.evidence,
                self._evidence_of_broader(),
                request.objective or "positions",
                build=lambda known: self._one_shot(usual, known),
                progress=self.settings.progress,
            )
        chosen = self._chosen[key]
        return request.model_copy(update={"shrinkage": chosen.shrinkage}), (chosen.note,)

    def _one_shot(self, request: CompressionSpec, known: Mixture) -> Compressed:
        """What ``request`` makes of what is ``known``, which is then forgotten."""
        basis = self._basis_on(request, known)
        self._forget(known)
        return Compressed(basis, plan_on(basis, self.meter))

    def _forget(self, known: Mixture) -> None:
        """Keep no decomposition that was made by what is ``known``."""
        for key in [key for key in self._kept if key[0] is known]:
            del self._kept[key]

    def _factored(self, basis: Basis, plan: CompressionPlan) -> Compressed:
        table = basis.original.table
        notes = (*plan.notes, *too_few_rows(table, plan, basis.stats))
        return Compressed(
            basis,
            plan.model_copy(update={"notes": notes}),
            self._repaired(basis, plan),
            self.settings.progress,
            self._unseen(basis),
        )

    def _unseen(self, basis: Basis) -> Decompositions | None:
        """What the held-out samples tell about the weights of ``basis``; None without any."""
        if self.held_out is None:
            return None
        key = tuple(site.name for site in basis.original.table.sites)
        if key not in self._unseen_kept:
            found = Evidence(basis.original, self.held_out, self.settings)
            spread = self.settings.backend.map
            self._unseen_kept[key] = Decompositions(found.stats, spread=spread)
        return self._unseen_kept[key]

    def _repaired(self, basis: Basis, plan: CompressionPlan) -> Repaired:
        """What a plan in sequence makes of the weights; nothing of one that is not."""
        if not plan.sequential or basis.known is None:
            return Repaired()
        return factor_sequentially(
            basis.original,
            plan,
            basis.decompositions,
            basis.known.sets,
            self.settings,
            weights=basis.gradients.weights if basis.gradients else None,
            identity=basis.known.identity,
        )


def learn(
    model: ModelLike | Original,
    samples: Samples | None = None,
    settings: RunSettings | None = None,
    *,
    benchmark: BenchmarkSpec | None = None,
    priced_on: Samples | None = None,
    held_out: Samples | None = None,
    broader: Mapping[str, Samples] | None = None,
) -> Learned:
    """Find the linear sites of ``model``, and run it over ``samples``.

    Args:
        model: a path, or a model in memory; never changed.
        samples: the calibration data; None looks at the weights alone.
        settings: how the model is run.
        benchmark: the size of one inference, for budgets of FLOPs and latency; None takes that of a
            sample of median length.
        priced_on: rows for that inference; None takes ``samples``.
        held_out: other samples, on which the error of every plan is measured once more.
        broader: further sets of samples, by name, for requests with shrinkage towards them.

    Raises:
        ModelFileError: the file is missing, damaged or unsafe, or the model cannot be run.
        DataError: the samples do not fit the model.
    """
    settings = settings or RunSettings()
    original = model if isinstance(model, Original) else open_original(model)
    with limited():
        evidence = None if samples is None else Evidence(original, samples, settings)
    meter = Meter(original, benchmark, samples=priced_on or samples, settings=settings)
    return Learned(original, settings, evidence, meter, held_out, broader or {})
