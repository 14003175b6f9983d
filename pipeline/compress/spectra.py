"""What the weights of a model lose at every rank, for tables and pictures."""

from __future__ import annotations

from dataclasses import dataclass

from compress_onnx.graph_passes.arrays import Float64
from compress_onnx.graph_passes.planning.plan import CompressionPlan
from compress_onnx.graph_passes.planning.spectra import spectrum
from compress_onnx.pipeline.compress.basis import Basis
from compress_onnx.pipeline.runtime.progress import Progress, Silent


@dataclass(frozen=True, eq=False)
class SiteSpectrum:
    """What truncating one site's weight of shape [K, N] costs at every rank.

    Attributes:
        site: the site's name.
        group: the group that it belongs to, such as ``attention``.
        weight_tail: relative *squared* error at rank 0, 1, … in the weight metric,
            ``[min(K, N) + 1]``.
        activation_tail: the same in the metric of the site's inputs, ``[min(K, N) + 1]``; ``None``
            without calibration.
        rank: the rank chosen; ``None`` where the site stays dense.
        reached: the relative error reached at ``rank``, *not* squared, in the activation metric
            where there is one.
        input_tail: the share of the inputs' variance beyond their first 0, 1, … principal
            components, ``[K + 1]``; ``None`` without calibration.
    """

    site: str
    group: str
    weight_tail: Float64
    activation_tail: Float64 | None
    rank: int | None
    reached: float | None
    input_tail: Float64 | None = None


def spectra_of(
    basis: Basis, plan: CompressionPlan, progress: Progress | None = None
) -> list[SiteSpectrum]:
    """The spectra of all sites that ``plan`` selects, with what it chose for them.

    Args:
        basis: what the plan stands on, with the same siblings joined.
        plan: with its errors, where they are to be shown.
        progress: shows the step.
    """
    planned = {site.site: site for site in plan.selected}
    selected = [site for site in basis.original.table.sites if site.name in planned]
    result: list[SiteSpectrum] = []
    with (progress or Silent()).step("spectra", len(selected)) as update:
        for site in selected:
            found = spectrum(site, basis.decompositions.known([site]))
            choice = planned[site.name]
            result.append(
                SiteSpectrum(
                    site=site.name,
                    group=site.group,
                    weight_tail=found.weight_tail,
                    activation_tail=found.activation_tail,
                    rank=choice.rank,
                    reached=choice.error.reached if choice.error else None,
                    input_tail=found.input_tail,
                )
            )
            update(len(result))
    return result
