"""Are there enough calibration samples? What the plan's own error cannot tell.

Factors of rank r fit n < r rows exactly: measured on the samples that they were calibrated on, too
little data looks perfect. So rows are counted here, and the error is measured again on samples that
calibration never saw (:class:`~graph_passes.planning.bound.PlanErrors`).
"""

from __future__ import annotations

from collections.abc import Mapping

from compress_onnx.graph_passes.factorization import ActivationStats
from compress_onnx.graph_passes.planning.evidence import statistics_of
from compress_onnx.graph_passes.planning.plan import CompressionPlan
from compress_onnx.graph_passes.sites.find import SiteTable
from compress_onnx.graph_passes.sites.grouping import group_by_weight


def too_few_rows(
    table: SiteTable, plan: CompressionPlan, stats: Mapping[str, ActivationStats]
) -> tuple[str, ...]:
    """Notes on factored weights that have fewer calibrated rows than their rank, or than K.

    Args:
        table: the sites of the model.
        plan: what is factored, at which ranks.
        stats: activation statistics by matrix name; what has none is not counted.

    Returns:
        At most one note for each of the two shortages: how many weights, and the worst of them.
    """
    groups = group_by_weight(table.sites)
    below_rank: list[tuple[int, str, int]] = []
    below_width: list[tuple[int, str, int]] = []
    for site in {s.weight: s for s in (*plan.factored, *plan.thinned)}.values():
        # Of a stack, the matrix that fewest rows reached; those that none reached have no say.
        known = statistics_of(groups[site.weight], stats)
        rows = min((seen.count for seen in known if seen is not None), default=None)
        if rows is None or site.kept is None:
            continue
        if rows < site.kept:
            below_rank.append((rows, site.site, site.kept))
        elif rows < site.in_features:
            below_width.append((rows, site.site, site.in_features))
    notes = []
    if below_rank:
        rows, name, rank = min(below_rank)
        notes.append(
            f"too little calibration data: {len(below_rank)} weights have fewer rows than their "
            f"rank (the worst {name}: {rows} for rank {rank}), so that their error on these "
            "samples says nothing: give more samples"
        )
    if below_width:
        rows, name, width = min(below_width)
        notes.append(
            f"little calibration data: {len(below_width)} weights have fewer rows than input "
            f"features (the worst {name}: {rows} for {width}), so that errors on other samples "
            "are larger: give more samples"
        )
    return tuple(notes)
