"""How strongly to shrink: chosen by leaving one set out.

For each broader set in turn, and each strength, a plan is made one shot, at half of the parameters,
from the calibration data and the *other* broader sets; towards the identity, from the calibration
data alone. Its damage D is predicted, to second order, on the calibration data and on the set that
was left out, with C, G and μ of that set and β what the bias takes over::

    D = Σ over sites of  tr(G Δᵀ C Δ) + vᵀ G v        Δ = W' − W      v = μΔ + β

Taken is the strength whose worst D is least, over the calibration data and all sets as they were
left out; of strengths that are as good but for two per cent, the least. One choice is good for all
budgets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from compress_onnx.graph_passes.arrays import Float64
from compress_onnx.graph_passes.errors import NotDifferentiableError, RequestError
from compress_onnx.graph_passes.factorization import GradientStats
from compress_onnx.graph_passes.planning.request import Shrinkage
from compress_onnx.graph_passes.sites.grouping import group_by_weight
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.pipeline.compress.compressed import Compressed
from compress_onnx.pipeline.evidence.collected import Evidence
from compress_onnx.pipeline.evidence.mixture import Mixture, pulled
from compress_onnx.pipeline.evidence.objective import Objective
from compress_onnx.pipeline.runtime.progress import Progress

STRENGTHS = (0.0, 0.1, 0.3, 0.5, 1.0)

_AS_GOOD = 1.02


class Choice(NamedTuple):
    """The strength that was chosen, and why."""

    shrinkage: Shrinkage
    note: str


def choose_strength(
    shrinkage: Shrinkage,
    evidence: Evidence,
    broader: Mapping[str, Evidence],
    objective: Objective,
    *,
    build: Callable[[Mixture], Compressed],
    progress: Progress,
) -> Choice:
    """The strength for ``shrinkage``, whose own is open.

    Args:
        shrinkage: what to pull towards.
        evidence: what is known from the calibration data.
        broader: what is known from each of the broader sets.
        objective: what about the outputs matters.
        build: makes a plan and one-shot factors of what is known.
        progress: shows the step.

    Raises:
        RequestError: too few broader sets, or the model has no gradients to predict by.
    """
    fewest = 2 if shrinkage.towards == "broader" else 1
    if len(broader) < fewest:
        raise RequestError(
            f"strength auto of shrinkage towards {shrinkage.towards} leaves a broader set out and "
            f"needs {fewest} or more, not {len(broader)}: give a strength, or more sets"
        )
    try:
        for known in (evidence, *broader.values()):
            known.gradients(objective)
    except NotDifferentiableError as error:
        raise RequestError(
            f"strength auto of shrinkage predicts damage by gradients: give a strength ({error})"
        ) from error
    worst: dict[float, float] = {}
    with progress.step("choose the strength", len(STRENGTHS)) as update:
        for done, strength in enumerate(STRENGTHS, start=1):
            tried = shrinkage.model_copy(update={"strength": strength})
            worst[strength] = max(
                max(damage(compressed, each, objective) for each in (evidence, broader[left_out]))
                for left_out, compressed in _folds(tried, evidence, broader, build)
            )
            update(done)
    least = min(worst.values())
    best = next(strength for strength in STRENGTHS if worst[strength] <= _AS_GOOD * least)
    told = ", ".join(f"{value:.3g} at {strength:g}" for strength, value in worst.items())
    return Choice(
        shrinkage.model_copy(update={"strength": best}),
        f"shrinkage towards {shrinkage.towards} has the strength {best:g}: leaving out one of "
        f"{', '.join(broader)} in turn, the worst predicted damage is {told}",
    )


def _folds(
    shrinkage: Shrinkage,
    evidence: Evidence,
    broader: Mapping[str, Evidence],
    build: Callable[[Mixture], Compressed],
) -> list[tuple[str, Compressed]]:
    """What is made with each set left out; where no set takes part, that is always the same."""
    if shrinkage.towards == "identity" or not shrinkage.strength:
        once = build(pulled(evidence, broader, shrinkage))
        return [(name, once) for name in broader]
    rest = [{n: e for n, e in broader.items() if n != name} for name in broader]
    return [
        (name, build(pulled(evidence, others, shrinkage)))
        for name, others in zip(broader, rest, strict=True)
    ]


def damage(compressed: Compressed, evidence: Evidence, objective: Objective) -> float:
    """The squared change of the outputs, a sample, that factors make on what ``evidence`` knows."""
    stats = evidence.gradients(objective).stats
    sites = compressed.basis.original.table.sites
    groups, total = group_by_weight(sites), 0.0
    for key, made in compressed.factorizations().items():
        product = made.product()
        total += sum(_damage(site, product, made.bias, stats) for site in groups[key])
    downs = {site.name: site for site in sites}
    for name, folded in compressed.folded().items():
        down = downs[name]
        total += _damage(down, folded.dense(down.in_features), folded.bias, stats)
    return total


def _damage(
    site: LinearSite,
    product: Float64,
    bias: Float64 | None,
    stats: Mapping[str, GradientStats],
) -> float:
    """What ``product`` [.., K, N] in the place of the site's weight does to the outputs."""
    errors = (product - site.weight.array().astype(np.float64)).reshape(-1, *product.shape[-2:])
    biases: Sequence[Float64 | float]
    biases = [0.0] * len(errors) if bias is None else list(bias.reshape(-1, product.shape[-1]))
    total = 0.0
    for name, error, shift in zip(site.matrices, errors, biases, strict=True):
        if name in stats:
            seen, moment = stats[name].inputs, stats[name].moment
            mean = seen.mean @ error + shift
            total += float(np.vdot(error @ moment, seen.covariance @ error) + mean @ moment @ mean)
    return site.alpha**2 * total
