"""Compare many ways to compress one model: each variant is compressed, validated and measured.

What the variants share (export, data, calibration) is computed once; every variant starts from the
original model. The result is a table and a Pareto picture: fidelity against size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import ValidationError

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec, budget_changes
from compress_onnx.graph_passes.validation_text import first_problem
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.recipe import Recipe
from compress_onnx.pipeline.recipes.experiment import prepare
from compress_onnx.pipeline.report.heading import Heading
from compress_onnx.pipeline.results import SweepReport
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
        shares: of each budget; for ``rank``, ranks.
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
    settings: RunSettings | None = None,
) -> SweepReport:
    """Try all ``variants`` on the model of ``recipe``.

    Args:
        recipe: model, data, metric and benchmark (None leaves latency out).
        variants: what to try, in the order of the rows.
        base_dir: what relative paths in the recipe are relative to.
        settings: cache, progress, and whether Python code that the recipe names may run.

    Raises:
        CompressOnnxError: the sweep could not be carried out. A variant that can compress nothing
            is a row that says so.
    """
    with TemporaryDirectory(prefix="compress-onnx-") as work:
        experiment = prepare(recipe, Path(work), base_dir=base_dir, settings=settings)
        rows = tuple(experiment.row(variant) for variant in variants)
    return SweepReport(**Heading(recipe.name).fields(), rows=rows)
