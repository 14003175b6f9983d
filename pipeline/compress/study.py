"""Collect the evidence that a request needs, and no more: activations, gradients, sensitivities.

Rules:

1. Activations wherever there are samples.
2. Gradients where the method or the allocation goes by them. Where the model has none, ``auto``
   falls back on measured sensitivity and says so; whoever asked for gradients gets the error.
3. Sensitivities where the allocation goes by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from compress_onnx.graph_passes.allocation import get_allocator
from compress_onnx.graph_passes.errors import NotDifferentiableError
from compress_onnx.graph_passes.factorization import (
    ActivationStats,
    Factorization,
    Method,
    make_method,
)
from compress_onnx.graph_passes.factorization.gauss_newton import GaussNewton
from compress_onnx.graph_passes.planning.damage import damage_curve
from compress_onnx.graph_passes.planning.decide import group_by_weight
from compress_onnx.graph_passes.planning.evidence import Evidence
from compress_onnx.graph_passes.planning.plan import CompressionPlan
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.planning.strategy import concrete
from compress_onnx.pipeline.compress.meter import Meter
from compress_onnx.pipeline.compress.sequential import DAMPING, factor_sequentially
from compress_onnx.pipeline.compress.subject import (
    Subject,
    calibrate_subject,
    plan_subject,
    weights_in,
)
from compress_onnx.pipeline.evidence.calibrate import Calibration
from compress_onnx.pipeline.evidence.gradients import OutputGradients, output_gradients
from compress_onnx.pipeline.evidence.objective import Objective
from compress_onnx.pipeline.evidence.sensitivity import measure_slopes, probing_samples
from compress_onnx.pipeline.files.cache import ArrayCache
from compress_onnx.pipeline.files.model_file import content_digest
from compress_onnx.pipeline.runtime.progress import Progress, Silent
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import SessionSpec


@dataclass(frozen=True)
class Study:
    """What is known about a model before it is compressed.

    Attributes:
        request: with nothing left open.
        calibration: activation statistics, with gradients where they were collected; None without
            samples.
        gradients: None where they were not needed, or there are none.
        slopes: measured sensitivity by weight key; None where it was not needed.
        notes: what could not be collected, and what stands in for it.
    """

    request: CompressionSpec
    calibration: Calibration | None = None
    gradients: OutputGradients | None = None
    slopes: Mapping[str, float] | None = None
    notes: tuple[str, ...] = ()

    @property
    def stats(self) -> Mapping[str, ActivationStats]:
        """Activation statistics by matrix name."""
        return self.calibration.stats if self.calibration else {}


@dataclass(frozen=True)
class Researcher:
    """How evidence is collected: what runs, on what, shown to whom.

    ``known`` is a calibration on the same samples, where there is one already.
    """

    subject: Subject
    samples: Samples
    known: Calibration | None = None
    spec: SessionSpec | None = None
    batch_size: int = 32
    cache: ArrayCache | None = None
    progress: Progress = field(default_factory=Silent)

    def study(self, request: CompressionSpec) -> Study:
        """Collect what ``request`` needs.

        Raises:
            DataError: the samples do not fit the model.
            NotDifferentiableError: gradients were asked for, and the model has none.
        """
        calibration = self._calibrate()
        wanted = concrete(request, "gradients")
        gradients = None
        notes: tuple[str, ...] = ()
        evidence: Evidence = "gradients"
        if goes_by_gradients(wanted):
            try:
                gradients = self.differentiate(wanted.objective or "positions")
            except NotDifferentiableError as error:
                wanted, evidence = concrete(request, "activations"), "activations"
                if goes_by_gradients(wanted):
                    raise
                notes = (f"no gradients, so sensitivity is measured instead: {error}",)
        if gradients is not None:
            calibration = with_gradients(calibration, gradients)
        final = concrete(request, evidence)
        slopes = None
        if get_allocator(final.allocation).damage == "sensitivity" and final.rank is None:
            slopes = self._measure(final, calibration)
        return Study(final, calibration, gradients, slopes, notes)

    def study_plan(self, plan: CompressionPlan) -> Study:
        """Collect what applying ``plan`` needs.

        Raises:
            DataError: the samples do not fit the model.
            NotDifferentiableError: the plan needs gradients, and the model has none.
        """
        calibration = self._calibrate()
        request = CompressionSpec(sequential=plan.sequential, objective=plan.objective)
        methods = [make_method(s.method.name, s.method.options) for s in plan.factored if s.method]
        if not any(method.needs_gradients for method in methods):
            return Study(request, calibration)
        gradients = self.differentiate(plan.objective)
        return Study(request, with_gradients(calibration, gradients), gradients)

    def factor(self, plan: CompressionPlan, study: Study) -> dict[str, Factorization] | None:
        """The factorizations of a sequential plan; None for one that is not."""
        if not plan.sequential:
            return None
        with self.progress.step("factor in sequence", weights_in(plan)) as update:
            return factor_sequentially(
                self.subject.model,
                self.subject.table,
                plan,
                study.stats,
                self.samples,
                data_folder=self.subject.path.parent,
                weights=study.gradients.weights if study.gradients else None,
                spec=self.spec,
                batch_size=self.batch_size,
                progress=update,
            )

    def differentiate(self, objective: Objective) -> OutputGradients:
        """Gradients of the outputs at all sites.

        Raises:
            NotDifferentiableError: the model has none.
        """
        subject = self.subject
        with self.progress.step("differentiate", len(self.samples)) as update:
            return output_gradients(
                subject.model,
                content_digest(subject.path, subject.model),
                subject.table.sites,
                self.samples,
                data_folder=subject.path.parent,
                objective=objective,
                spec=self.spec,
                batch_size=self.batch_size,
                cache=self.cache,
                progress=update,
            )

    def _calibrate(self) -> Calibration:
        return self.known or calibrate_subject(
            self.subject,
            self.samples,
            spec=self.spec,
            batch_size=self.batch_size,
            cache=self.cache,
            progress=self.progress,
        )

    def _measure(self, request: CompressionSpec, calibration: Calibration) -> dict[str, float]:
        subject = self.subject
        groups = group_by_weight(subject.table.sites)
        with self.progress.step("measure sensitivity", len(groups)) as update:
            return measure_slopes(
                subject.model,
                groups,
                make_method(request.method.name, request.method.options),
                calibration.stats,
                probing_samples(self.samples),
                share=request.share,
                data_folder=subject.path.parent,
                objective=request.objective or "positions",
                spec=self.spec,
                batch_size=self.batch_size,
                progress=update,
            )


def plan_study(subject: Subject, study: Study, meter: Meter | None = None) -> CompressionPlan:
    """Decide on every site; refuse when nothing would be factored.

    Args:
        subject: the model.
        study: what is known about it.
        meter: finds out what weights take of a budget of FLOPs or latency.

    Raises:
        RequestError: the request makes no sense for this model.
        NothingToCompressError: no weight can be factored with a gain.
    """
    request = study.request
    method = make_method(request.method.name, request.method.options)
    # A fixed rank is shared out by nothing, and a model without sites has nothing to share.
    fixed = request.rank is not None or not subject.table.sites
    kind = "none" if fixed else get_allocator(request.allocation).damage
    damage = damage_curve(kind, method, study.stats, study.slopes)
    prices = meter.prices(subject, request) if meter else None
    curve = prices.curve if prices else None
    plan = plan_subject(subject, request, study.calibration, damage, curve)
    measured = (prices.note,) if prices else ()
    notes = (*study.notes, *measured, *plan.notes, *_dampings(method, plan))
    return plan.model_copy(update={"notes": notes})


def _dampings(method: Method, plan: CompressionPlan) -> tuple[str, ...]:
    """What is added to a matrix before it is inverted belongs into the report."""
    notes: list[str] = []
    if isinstance(method, GaussNewton):
        notes.append(
            f"gauss-newton damps gradient moments by {method.damping:g} of their mean eigenvalue"
        )
    if plan.sequential:
        notes.append(
            f"sequential repair damps input covariances by {DAMPING:g} of their mean eigenvalue"
        )
    return tuple(notes)


def goes_by_gradients(request: CompressionSpec) -> bool:
    """Whether a request with nothing left open cannot be met without gradients."""
    method = make_method(request.method.name, request.method.options)
    return method.needs_gradients or get_allocator(request.allocation).damage == "gauss-newton"


def with_gradients(calibration: Calibration, gradients: OutputGradients) -> Calibration:
    """The calibration with the gradients of each site beside its activations."""
    stats = {
        name: replace(known, gradients=gradients.stats.get(name))
        for name, known in calibration.stats.items()
    }
    return replace(calibration, stats=stats)
