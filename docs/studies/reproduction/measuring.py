"""Variants of a model as measured, and their figures as text."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from compress_onnx.graph_passes.planning.plan import MethodSpec, OptionValue
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.recipe import RecoverySpec
from compress_onnx.pipeline.recipes.single import ModelExperiment
from compress_onnx.pipeline.report.formats import MISSING, significant
from compress_onnx.pipeline.results import SweepRow

logger = logging.getLogger(__name__)


def measure(
    experiment: ModelExperiment,
    method: str,
    *,
    options: Mapping[str, OptionValue] | None = None,
    benchmark: bool = False,
    recovery: RecoverySpec | None = None,
    **request: object,
) -> SweepRow:
    """One variant of the model of ``experiment``.

    Args:
        experiment: a prepared recipe, whose selection of sites and multiple of ranks hold unless
            ``request`` says other.
        method: by name.
        options: of the method.
        benchmark: also measure latency, as the recipe says.
        recovery: train afterwards.
        request: other fields of :class:`CompressionSpec`.

    Raises:
        ValidationError: there is no such field, or its value makes no sense.
    """
    recipe = experiment.recipe
    base = {"select": recipe.compression.select, "rank_multiple": recipe.compression.rank_multiple}
    variant = CompressionSpec.model_validate(
        {**base, "method": MethodSpec(name=method, options=dict(options or {})), **request}
    )
    settings = {"benchmark": recipe.benchmark if benchmark else None, "recovery": recovery}
    tried = replace(experiment, recipe=recipe.model_copy(update=settings))
    row = tried.row(variant)
    details = {**(options or {}), **request}
    asked = ", ".join(f"{name} {value}" for name, value in details.items() if name != "select")
    logger.info("%s, %s, %s: %s", recipe.name, method, asked, row.metrics.get("accuracy", ""))
    return row


def accuracy(row: SweepRow) -> str:
    """The share of right answers."""
    return f"{row.metrics['accuracy']:.4f}"


def drop(row: SweepRow) -> str:
    """What is lost of it, with the paired 95 % interval."""
    metrics = row.metrics
    low, high = metrics["accuracy_drop_low"], metrics["accuracy_drop_high"]
    return f"{metrics['accuracy_drop']:+.4f} [{low:+.4f}, {high:+.4f}]"


def logit_error(row: SweepRow) -> float:
    """``‖c − r‖ / ‖r‖`` of the worst output on held-out data."""
    return max(output.relative_l2 for output in row.outputs)


def site_error(row: SweepRow) -> str:
    """The error of all factored sites together, in front of the least that is possible.

    The bound is that of the plan's ranks (:class:`graph_passes.planning.plan.PlanError`).
    """
    if row.error is None:
        return MISSING
    return f"{significant(row.error.reached, 3)} ≥ {significant(row.error.bound, 3)}"


def kept(row: SweepRow) -> str:
    """The share of the selected parameters that is left."""
    assert row.parameters_after is not None
    assert row.parameters_before is not None
    return f"{row.parameters_after / row.parameters_before:.1%}"


def ranks(row: SweepRow) -> str:
    """``12`` or ``12–40``."""
    if row.ranks is None:
        return MISSING
    low, high = row.ranks
    return str(low) if low == high else f"{low}–{high}"


def run_time(row: SweepRow) -> float:
    """Over that of the original on the CPU, measured in turns."""
    return 1 / row.benchmarks[0].speedup


def run_time_text(row: SweepRow) -> str:
    """The same with its 95 % interval."""
    found = row.benchmarks[0]
    return f"{1 / found.speedup:.2f} [{1 / found.speedup_high:.2f}, {1 / found.speedup_low:.2f}]"
