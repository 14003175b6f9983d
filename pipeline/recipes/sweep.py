"""Compare many ways to compress one model: each variant is compressed, validated and measured.

What the variants share (export, data, calibration) is computed once; every variant starts from the
original model. The result is a table and a Pareto picture: fidelity against size.

Workers of other machines take a variant each. Each of them prepares the recipe once, from files
that it sees under the same paths, with what its cache has: a shared folder was filled here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import NamedTuple

from pydantic import ValidationError

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec, budget_changes
from compress_onnx.graph_passes.validation_text import first_problem
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.cache import ArrayCache, default_folder
from compress_onnx.pipeline.recipe import Recipe
from compress_onnx.pipeline.recipes.experiment import Experiment, prepare
from compress_onnx.pipeline.report.heading import Heading
from compress_onnx.pipeline.results import SweepReport, SweepRow
from compress_onnx.pipeline.runtime.session import SessionSpec
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
        settings: cache, progress, backend, and whether Python code that the recipe names may run.

    Raises:
        CompressOnnxError: the sweep could not be carried out. A variant that can compress nothing
            is a row that says so.
    """
    settings = settings or RunSettings()
    if settings.backend.remote:
        _check_untimed(recipe, variants)
    with TemporaryDirectory(prefix="compress-onnx-") as work:
        experiment = prepare(recipe, Path(work), base_dir=base_dir, settings=settings)
        if settings.backend.remote:
            rows = _rows_elsewhere(recipe, variants, base_dir, settings)
        else:
            rows = tuple(experiment.row(variant) for variant in variants)
    return SweepReport(**Heading(recipe.name).fields(), rows=rows)


def _check_untimed(recipe: Recipe, variants: Sequence[CompressionSpec]) -> None:
    """Refuse to measure times on workers, whose machines others may use.

    Raises:
        RequestError: the recipe or a variant asks for that.
    """
    if recipe.benchmark is not None or any(v.budget == "latency" for v in variants):
        raise RequestError(
            "workers measure no latency, as others may use their machines: add --no-benchmark, and "
            "give no budget of latency"
        )


def _rows_elsewhere(
    recipe: Recipe, variants: Sequence[CompressionSpec], base_dir: Path, settings: RunSettings
) -> tuple[SweepRow, ...]:
    there = _There(
        recipe.model_dump_json(exclude_unset=True),
        base_dir.absolute(),
        settings.session.thread_count,
        settings.cache is not None,
        settings.allow_code,
    )
    rows: list[SweepRow] = []
    with settings.progress.step("sweep", len(variants)) as update:
        for row in settings.backend.map(partial(_row, there), variants):
            rows.append(row)
            update(len(rows))
    return tuple(rows)


class _There(NamedTuple):
    """What a worker needs to know to prepare a recipe; ``cached`` is whether in its own cache."""

    recipe: str
    base_dir: Path
    threads: int
    cached: bool
    allow_code: bool


_ONE_AT_A_TIME = Lock()


def _row(there: _There, variant: CompressionSpec) -> SweepRow:
    """The row of one variant, on a worker."""
    with _ONE_AT_A_TIME:
        experiment, _ = _prepared(there)
        return experiment.row(variant)


@lru_cache(maxsize=1)
def _prepared(there: _There) -> tuple[Experiment, TemporaryDirectory[str]]:
    """The recipe made ready, and the folder that it needs as long as it is used."""
    folder = TemporaryDirectory(prefix="compress-onnx-")
    settings = RunSettings(
        session=SessionSpec(threads=there.threads),
        cache=ArrayCache(default_folder()) if there.cached else None,
        allow_code=there.allow_code,
    )
    recipe = Recipe.model_validate_json(there.recipe)
    return prepare(recipe, Path(folder.name), base_dir=there.base_dir, settings=settings), folder
