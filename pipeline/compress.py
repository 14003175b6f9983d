"""Compress one ONNX model: find sites, calibrate, plan, rewrite.

The steps are functions over a :class:`Subject`, so that the command line, the recipe runner and
Python code can stop after any of them (a dry run stops before rewriting).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from graph_passes.canonicalize import canonicalize
from graph_passes.cleanup import cleanup
from graph_passes.factoring import check_fits, factor_weights, with_errors
from graph_passes.factorization import ActivationStats, Factorization
from graph_passes.lowrank import LowRankPass
from graph_passes.plan import CompressionPlan
from graph_passes.planning import DamageCurve, make_plan, require_gain
from graph_passes.request import CompressionSpec
from graph_passes.sites import SiteTable, find_sites
from graph_passes.spectra import spectrum
from pipeline.cache import ArrayCache
from pipeline.calibrate import Calibration, calibrate
from pipeline.data.samples import Samples
from pipeline.model_file import content_digest, load_model
from pipeline.progress import Progress, Silent
from pipeline.report.pictures import SiteSpectrum
from pipeline.session import SessionSpec


@dataclass(frozen=True)
class Subject:
    """A model on its way through compression.

    Attributes:
        path: the file it came from; never changed.
        model: its graph in memory, canonical.
        table: its linear sites and the matrix products that are none.
    """

    path: Path
    model: ir.Model
    table: SiteTable


def open_subject(path: Path) -> Subject:
    """Load ``path`` and find its sites.

    Raises:
        ModelFileError: the file is missing, damaged or unsafe.
    """
    model = load_model(path)
    canonicalize(model)
    return Subject(path, model, find_sites(model))


def calibrate_subject(
    subject: Subject,
    samples: Samples,
    *,
    spec: SessionSpec | None = None,
    batch_size: int = 32,
    cache: ArrayCache | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Collect activation statistics for all sites of ``subject``.

    Raises:
        DataError: the samples do not fit the model.
    """
    with (progress or Silent()).step("calibrate", len(samples)) as update:
        return calibrate(
            subject.model,
            content_digest(subject.path, subject.model),
            subject.table.sites,
            samples,
            data_folder=subject.path.parent,
            spec=spec,
            batch_size=batch_size,
            cache=cache,
            progress=update,
        )


def plan_subject(
    subject: Subject,
    request: CompressionSpec,
    calibration: Calibration | None,
    damage: DamageCurve | None = None,
) -> CompressionPlan:
    """Decide on every site; refuse when nothing would be factored.

    Raises:
        RequestError: the request makes no sense for this model.
        NothingToCompressError: no weight can be factored with a gain.
    """
    plan = make_plan(subject.table, request, statistics(calibration), damage)
    require_gain(plan)
    return plan


def evaluate_plan(
    subject: Subject,
    plan: CompressionPlan,
    calibration: Calibration | None,
    progress: Progress | None = None,
    ready: Mapping[str, Factorization] | None = None,
) -> CompressionPlan:
    """The plan with the error that each factorization would have; changes nothing."""
    errors = {}
    with (progress or Silent()).step("factor", weights_in(plan)) as update:
        for factored in factor_weights(subject.table, plan, statistics(calibration), ready):
            errors[factored.plan.weight] = factored.error
            update(len(errors))
    return with_errors(plan, errors)


def apply_plan(
    subject: Subject,
    plan: CompressionPlan,
    calibration: Calibration | None,
    *,
    ready: Mapping[str, Factorization] | None = None,
    keep_metadata: bool = False,
    progress: Progress | None = None,
) -> CompressionPlan:
    """Rewrite ``subject.model`` in place and tidy it up; returns the plan with measured errors.

    ``ready`` holds factorizations by weight key that need not be computed any more.

    Raises:
        RequestError: the plan does not fit the model.
    """
    check_fits(subject.table, plan)
    with (progress or Silent()).step("factor", weights_in(plan)) as update:
        low_rank = LowRankPass(plan, statistics(calibration), update, ready)
        low_rank(subject.model)
    cleanup(subject.model, keep_metadata=keep_metadata)
    return low_rank.plan


def spectra_of(
    subject: Subject,
    plan: CompressionPlan,
    calibration: Calibration | None,
    progress: Progress | None = None,
) -> list[SiteSpectrum]:
    """The spectra of all selected sites, for tables and pictures.

    Needs the weights as they were: call it before :func:`apply_plan`.
    """
    stats = statistics(calibration)
    planned = {site.site: site for site in plan.selected}
    selected = [site for site in subject.table.sites if site.name in planned]
    result = []
    with (progress or Silent()).step("spectra", len(selected)) as update:
        for site in selected:
            found = spectrum(site, stats.get(site.name))
            choice = planned[site.name]
            result.append(
                SiteSpectrum(
                    site=site.name,
                    group=site.group,
                    weight_tail=found.weight_tail,
                    activation_tail=found.activation_tail,
                    rank=choice.rank,
                    reached=choice.error.reached if choice.error else None,
                )
            )
            update(len(result))
    return result


def statistics(calibration: Calibration | None) -> Mapping[str, ActivationStats]:
    """The statistics by site; none without calibration."""
    return calibration.stats if calibration is not None else {}


def weights_in(plan: CompressionPlan) -> int:
    """How many weights the plan factors."""
    return len({site.weight for site in plan.factored})
