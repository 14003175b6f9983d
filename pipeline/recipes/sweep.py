"""Compare many ways to compress one model: each variant is compressed, validated and measured.

What the variants share (export, data, calibration) is computed once; every variant starts from the
original model. The result is a table and a Pareto picture: fidelity against size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import ValidationError

from compress_onnx.graph_passes.errors import NothingToCompressError, RequestError
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec, budget_changes
from compress_onnx.graph_passes.validation_text import first_problem
from compress_onnx.pipeline.files.cache import ArrayCache
from compress_onnx.pipeline.files.model_file import model_size
from compress_onnx.pipeline.recipe import Recipe
from compress_onnx.pipeline.recipes.experiment import Experiment, prepare
from compress_onnx.pipeline.results import SweepReport, SweepRow
from compress_onnx.pipeline.runtime.environment import environment
from compress_onnx.pipeline.runtime.progress import Progress
from compress_onnx.pipeline.runtime.threads import limited


def grid(
    base: CompressionSpec,
    methods: Sequence[MethodSpec],
    shares: Mapping[str, Sequence[float]],
    allocations: Sequence[str],
    stores: Sequence[str] = (),
) -> list[CompressionSpec]:
    """Every combination; an empty axis keeps what ``base`` says.

    Args:
        base: what is not varied.
        methods: how to factor.
        shares: of each budget.
        allocations: by name.
        stores: how the file holds factors.

    Raises:
        RequestError: a share is out of range, or there is no such store.
    """
    limits = [budget_changes(budget, share) for budget in shares for share in shares[budget]]
    return [
        _variant(base, {"method": method, "store": store, "allocation": allocation, **limit})
        for method, store, allocation, limit in product(
            methods or [base.method],
            stores or [base.store],
            allocations or [base.allocation],
            limits or [{}],
        )
    ]


def _variant(base: CompressionSpec, changes: Mapping[str, object]) -> CompressionSpec:
    try:
        return CompressionSpec.model_validate({**dict(base), **changes})
    except ValidationError as error:
        raise RequestError(first_problem(error)) from error


@limited()
def sweep(
    recipe: Recipe,
    variants: Sequence[CompressionSpec],
    *,
    base_dir: Path,
    cache: ArrayCache | None = None,
    progress: Progress | None = None,
) -> SweepReport:
    """Try all ``variants`` on the model of ``recipe``.

    Args:
        recipe: model, data, metric and benchmark (None leaves latency out).
        variants: what to try, in the order of the rows.
        base_dir: what relative paths in the recipe are relative to.
        cache: where calibration is kept between runs.
        progress: shows the steps.

    Raises:
        CompressOnnxError: the sweep could not be carried out. A variant that can compress nothing
            is a row that says so.
    """
    with TemporaryDirectory(prefix="compress-onnx-") as work:
        folder = Path(work) / "reference"
        folder.mkdir()
        experiment = prepare(recipe, folder, base_dir=base_dir, cache=cache, progress=progress)
        rows = tuple(measure_variant(experiment, variant) for variant in variants)
    return SweepReport(
        tool_version=version("compress-onnx"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        name=recipe.name,
        environment=environment(),
        rows=rows,
    )


def measure_variant(experiment: Experiment, variant: CompressionSpec) -> SweepRow:
    """Compress the model of ``experiment`` in one way, and measure what came of it.

    Raises:
        RequestError: the variant makes no sense for this model.
    """
    # A folder a variant: data files are named after their content, so they would pile up in one.
    with TemporaryDirectory(prefix="compress-onnx-") as folder:
        candidate = Path(folder) / "candidate.onnx"
        try:
            plan = experiment.compress(variant, candidate)
        except NothingToCompressError as error:
            return SweepRow(variant=variant, problem=str(error))
        recovery = experiment.recover(candidate)
        validation = experiment.validate(candidate)
        benchmarks, _ = experiment.benchmark(candidate, plan)
        ranks = [site.rank for site in plan.factored if site.rank is not None]
        return SweepRow(
            variant=variant.model_copy(update={"allocation": plan.allocation}),
            ranks=(min(ranks), max(ranks)),
            error=plan.error,
            recovery=recovery,
            parameters_before=plan.parameters_before,
            parameters_after=plan.parameters_after,
            size=model_size(experiment.reference, candidate),
            metrics=validation.metrics if validation else {},
            outputs=validation.outputs if validation else (),
            benchmarks=benchmarks,
        )
