"""What a plan stands on: the model, the request with nothing left open, and what is known.

request + evidence -> basis -> plan
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from compress_onnx.graph_passes.allocation import get_allocator
from compress_onnx.graph_passes.arrays import Float64
from compress_onnx.graph_passes.factorization import ActivationStats, Method, make_method
from compress_onnx.graph_passes.factorization.gauss_newton import GaussNewton
from compress_onnx.graph_passes.planning.damage import DamageCurves, damage_curve
from compress_onnx.graph_passes.planning.decompositions import Decompositions
from compress_onnx.graph_passes.planning.ffns import NeuronEvidence, knows_enough, neuron_curves
from compress_onnx.graph_passes.planning.plan import CompressionPlan
from compress_onnx.graph_passes.planning.planner import make_plan, require_gain
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.pipeline.compress.meter import Meter
from compress_onnx.pipeline.compress.sequential import DAMPING
from compress_onnx.pipeline.evidence.gradients import OutputGradients
from compress_onnx.pipeline.evidence.mixture import Mixture
from compress_onnx.pipeline.files.original import Original
from compress_onnx.pipeline.runtime.progress import Progress, Silent


@dataclass(frozen=True, eq=False)
class Basis:
    """Everything that decides about a model.

    Attributes:
        original: the model, siblings that share a factor joined.
        request: with nothing left open.
        decompositions: of its weights, with what is known about their inputs.
        known: what running the model told; None without samples.
        gradients: None where they were not needed, or there are none.
        slopes: measured sensitivity by weight key; None where it was not needed.
        notes: what could not be collected, and what stands in for it.
    """

    original: Original
    request: CompressionSpec
    decompositions: Decompositions
    known: Mixture | None = None
    gradients: OutputGradients | None = None
    slopes: Mapping[str, float] | None = None
    notes: tuple[str, ...] = ()

    @property
    def stats(self) -> Mapping[str, ActivationStats]:
        """Activation statistics by matrix name."""
        return self.decompositions.stats

    @property
    def method(self) -> Method:
        """The method that the request names."""
        return make_method(self.request.method.name, self.request.method.options)

    def noting(self, *notes: str) -> Basis:
        """The same with more notes."""
        return replace(self, notes=(*self.notes, *notes))


def plan_on(
    basis: Basis, meter: Meter | None = None, progress: Progress | None = None
) -> CompressionPlan:
    """Decide on every site; refuse when nothing would be factored.

    Args:
        basis: what decides.
        meter: finds out what weights take of a budget of FLOPs or latency.
        progress: shows how many weights are decomposed.

    Raises:
        RequestError: the request makes no sense for this model.
        NothingToCompressError: no weight can be factored with a gain.
    """
    request = basis.request
    kind = get_allocator(request.allocation).damage
    sites = basis.original.table.sites
    # Where one rank is asked for everywhere, or there is nothing to share out, nobody needs curves.
    curves = request.rank is None and bool(sites)
    damage = (
        damage_curve(kind, basis.method, basis.decompositions, basis.slopes) if curves else None
    )
    prices = meter.prices(request) if meter else None
    networks = None
    if basis.stats:
        networks = NeuronEvidence(
            knows_enough(kind, basis.decompositions),
            neuron_curves(kind, basis.decompositions, basis.slopes),
            prices.networks if prices else None,
        )
    plan = make_plan(
        basis.original.table,
        request,
        basis.stats,
        None if damage is None else _shown(damage, progress or Silent()),
        prices.curve if prices else None,
        networks=networks,
    )
    require_gain(plan)
    measured = (prices.note,) if prices else ()
    notes = (*basis.notes, *measured, *plan.notes, *_dampings(basis.method, plan))
    return plan.model_copy(update={"notes": notes})


def _shown(curves: DamageCurves, progress: Progress) -> DamageCurves:
    """``curves`` with a step that says how many are known."""

    def shown(weights: Sequence[Sequence[LinearSite]]) -> Iterator[Float64 | None]:
        with progress.step("decompose", len(weights)) as update:
            for done, curve in enumerate(curves(weights), start=1):
                update(done)
                yield curve

    return shown


def goes_by_gradients(request: CompressionSpec) -> bool:
    """Whether a request with nothing left open cannot be met without gradients."""
    method = make_method(request.method.name, request.method.options)
    return method.needs_gradients or get_allocator(request.allocation).damage == "gauss-newton"


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
