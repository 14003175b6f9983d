"""Compress one ONNX model: find sites, calibrate, plan, rewrite.

The steps are functions over a :class:`Subject`, so that the command line, the recipe runner and
Python code can stop after any of them (a dry run stops before rewriting).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from compress_onnx.graph_passes.errors import ModelFileError
from compress_onnx.graph_passes.factorization import ActivationStats, Factorization
from compress_onnx.graph_passes.planning.bound import PlanErrors
from compress_onnx.graph_passes.planning.decide import DamageCurve, make_plan, require_gain
from compress_onnx.graph_passes.planning.evidence import statistics_of
from compress_onnx.graph_passes.planning.factoring import check_fits, factor_weights
from compress_onnx.graph_passes.planning.plan import CompressionPlan
from compress_onnx.graph_passes.planning.prices import PriceCurve
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.planning.spectra import spectrum
from compress_onnx.graph_passes.rewriting.canonicalize import canonicalize
from compress_onnx.graph_passes.rewriting.cleanup import cleanup
from compress_onnx.graph_passes.rewriting.initializers import Store, in_memory
from compress_onnx.graph_passes.rewriting.join_siblings import PartSiblingsPass
from compress_onnx.graph_passes.rewriting.low_rank import LowRankPass
from compress_onnx.graph_passes.sites.find import SiteTable, find_sites
from compress_onnx.pipeline.evidence.calibrate import Calibration, calibrate
from compress_onnx.pipeline.files.cache import ArrayCache
from compress_onnx.pipeline.files.model_file import (
    content_digest,
    data_files,
    load_model,
    save_model,
)
from compress_onnx.pipeline.files.spill import spill
from compress_onnx.pipeline.report.pictures import SiteSpectrum
from compress_onnx.pipeline.runtime.progress import Progress, Silent
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import SessionSpec, check_loads
from compress_onnx.pipeline.runtime.threads import limited

logger = logging.getLogger(__name__)


@dataclass
class Subject:
    """A model on its way through compression; joining siblings changes its model and its table.

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
    with _threads_for(subject), (progress or Silent()).step("calibrate", len(samples)) as update:
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
    price: PriceCurve | None = None,
) -> CompressionPlan:
    """Decide on every site; refuse when nothing would be factored.

    Raises:
        RequestError: the request makes no sense for this model.
        NothingToCompressError: no weight can be factored with a gain.
    """
    with _threads_for(subject):
        plan = make_plan(subject.table, request, statistics(calibration), damage, price)
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
    stats = statistics(calibration)
    errors = PlanErrors(subject.table, plan, stats)
    with _threads_for(subject), (progress or Silent()).step("factor", weights_in(plan)) as update:
        weights = factor_weights(subject.table, plan, stats, ready)
        for done, factored in enumerate(weights, start=1):
            errors.add(factored)
            update(done)
    return errors.result()


def apply_plan(
    subject: Subject,
    plan: CompressionPlan,
    calibration: Calibration | None,
    *,
    ready: Mapping[str, Factorization] | None = None,
    keep_metadata: bool = False,
    progress: Progress | None = None,
    store: Store = in_memory,
) -> CompressionPlan:
    """Rewrite ``subject.model`` in place and tidy it up; returns the plan with measured errors.

    Args:
        subject: its model is changed, its table no longer fits it afterwards.
        plan: what to do.
        calibration: needed by the methods that look at activations.
        ready: factorizations by weight key that need not be computed any more.
        keep_metadata: keep what the exporter wrote about sources.
        progress: shows the steps.
        store: where the new weights go.

    Raises:
        RequestError: the plan does not fit the model.
    """
    check_fits(subject.table, plan)
    with _threads_for(subject), (progress or Silent()).step("factor", weights_in(plan)) as update:
        low_rank = LowRankPass(plan, statistics(calibration), update, ready, store)
        low_rank(subject.model)
    PartSiblingsPass(store)(subject.model)
    cleanup(subject.model, keep_metadata=keep_metadata)
    return low_rank.plan


def write_compressed(
    subject: Subject,
    plan: CompressionPlan,
    calibration: Calibration | None,
    output: Path,
    *,
    ready: Mapping[str, Factorization] | None = None,
    keep_metadata: bool = False,
    external_data: bool | None = None,
    progress: Progress | None = None,
) -> CompressionPlan:
    """Rewrite ``subject``, which is used up by that, and write it once ONNX Runtime loads it.

    Where the weights come from external data, one at a time is in memory, with its factors.

    Args:
        subject: what to rewrite.
        plan: what to do.
        calibration: needed by the methods that look at activations.
        output: replaced in one step, and only by a model that loads.
        ready: factorizations by weight key that need not be computed any more.
        keep_metadata: keep what the exporter wrote about sources.
        external_data: whether weights go into a data file; None decides by size.
        progress: shows the steps.

    Returns:
        The plan with measured errors.

    Raises:
        RequestError: the plan does not fit the model.
        OutputError: ``output`` cannot be written.
        ModelFileError: ONNX Runtime loads the original, but not the result.
    """
    with _store_for(subject, output) as store:
        plan = apply_plan(
            subject,
            plan,
            calibration,
            ready=ready,
            keep_metadata=keep_metadata,
            progress=progress,
            store=store,
        )
        save_model(
            subject.model,
            output,
            external_data=external_data,
            check=lambda staged: _check_loads(staged, subject.path),
        )
    return plan


def _store_for(subject: Subject, output: Path) -> AbstractContextManager[Store]:
    return spill(output) if data_files(subject.model) else nullcontext(in_memory)


def _check_loads(candidate: Path, reference: Path) -> None:
    """Let ONNX Runtime judge ``candidate``, unless it does not know ``reference`` either."""
    try:
        check_loads(candidate)
    except ModelFileError as refusal:
        try:
            check_loads(reference)
        except ModelFileError as known:
            logger.warning("not proven that the result loads, as the original does not: %s", known)
            return
        raise ModelFileError(
            f"{refusal}, though it loads {reference}: nothing was written; exclude the sites that "
            "it names, and report this as a defect"
        ) from refusal


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
    with _threads_for(subject), (progress or Silent()).step("spectra", len(selected)) as update:
        for site in selected:
            found = spectrum(site, statistics_of([site], stats))
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


def _threads_for(subject: Subject) -> AbstractContextManager[None]:
    return limited(max((site.in_features for site in subject.table.sites), default=0))


def statistics(calibration: Calibration | None) -> Mapping[str, ActivationStats]:
    """The statistics by site; none without calibration."""
    return calibration.stats if calibration is not None else {}


def weights_in(plan: CompressionPlan) -> int:
    """How many weights the plan factors."""
    return len({site.weight for site in plan.factored})
