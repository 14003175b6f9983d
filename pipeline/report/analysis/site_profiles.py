"""Profile the sites of a model: explained variance, densities of their inputs, the LayerNorm test.

For a site with weight W [K, N] and inputs x with covariance C, three spectra tell how many ranks
carry how much:

=========  ==============================  ====================================================
weights    σ² of W                         what plain SVD goes by
inputs     eigenvalues of C                principal components of what the site reads
outputs    eigenvalues of ``WᵀCW``         what exact ASVD goes by: the outputs' variance
=========  ==============================  ====================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from compress_onnx.graph_passes.factorization import ActivationStats
from compress_onnx.graph_passes.planning.plan import CompressionPlan
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.graph_passes.sites.naming import kind_of
from compress_onnx.graph_passes.sites.normalization import origin_of
from compress_onnx.pipeline.compress.learn import Learned
from compress_onnx.pipeline.compress.spectra import SiteSpectrum
from compress_onnx.pipeline.evidence.calibrate import taps_of
from compress_onnx.pipeline.evidence.collected import Evidence
from compress_onnx.pipeline.report.analysis.conclusion import conclude
from compress_onnx.pipeline.report.analysis.densities import Density, deviation_density, magnitudes
from compress_onnx.pipeline.report.analysis.layernorm import (
    NormalizationTest,
    compare,
    deviations_of,
    variation,
)
from compress_onnx.pipeline.report.heading import Heading
from compress_onnx.pipeline.results import REPORT_SCHEMA_VERSION, Environment, Potential, Result
from compress_onnx.pipeline.runtime.samples import Samples

ENERGIES = (0.9, 0.99)
"""Shares of the variance for which reports give ranks."""


class SiteProfile(Result):
    """One site, and how many ranks carry the shares :data:`ENERGIES` of its variance.

    Attributes:
        site: its name.
        kind: the same in every layer (:func:`graph_passes.sites.naming.kind_of`).
        layer: its number; None outside of layers.
        in_features, out_features: K and N.
        weights: ranks for W.
        inputs, outputs: ranks for C and ``WᵀCW``; empty where there are no statistics.
    """

    site: str
    kind: str
    layer: int | None
    in_features: int
    out_features: int
    weights: tuple[int, ...]
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()


class InputProfile(Result):
    """One value that sites read, x [positions, K].

    Attributes:
        input: its name.
        kinds: of the sites that read it.
        layer: of the first of them.
        fed_by: the operator that makes it, or the normalization behind its affine part.
        normalized: whether that is a normalization.
        units: K.
        zeros: share of the numbers that are zero.
        median, p99: of |x| over all units and positions.
        deviations: least, median and largest standard deviation of a unit.
        variation: standard deviation over mean of the units' standard deviations.
    """

    input: str
    kinds: tuple[str, ...]
    layer: int | None
    fed_by: str
    normalized: bool
    units: int
    zeros: float
    median: float
    p99: float
    deviations: tuple[float, float, float]
    variation: float


class AnalysisReport(Result):
    """What ``analyze -o`` writes as ``analysis.json``; ``budget`` is that of the test's ranks."""

    schema_version: Literal[1] = REPORT_SCHEMA_VERSION
    tool_version: str
    created: str
    name: str
    environment: Environment
    calibration: str
    held_out: str
    budget: str
    sites: tuple[SiteProfile, ...]
    inputs: tuple[InputProfile, ...]
    test: NormalizationTest
    potential: Potential | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Analysis:
    """A report, and the curves for its pictures.

    Attributes:
        report: the figures.
        spectra: one for each site of the report, in its order.
        magnitudes, deviations: one density for each input of the report, in its order.
    """

    report: AnalysisReport
    spectra: Sequence[SiteSpectrum]
    magnitudes: Sequence[Density]
    deviations: Sequence[Density]


def analyze(
    learned: Learned,
    name: str,
    plan: CompressionPlan,
    spectra: Sequence[SiteSpectrum],
    held_out: Samples,
    *,
    potential: Potential | None = None,
) -> Analysis:
    """Profile all sites of a model; changes nothing.

    Args:
        learned: the model and its calibration.
        name: what the report calls it.
        plan: of all its sites; gives the ranks of the LayerNorm test.
        spectra: of the same sites.
        held_out: other data, on which the methods of the test are compared.
        potential: where bytes and time go, for the report.

    Raises:
        DataError: the samples do not fit the model.
        ModelFileError: the model cannot be run.
    """
    original, settings = learned.original, learned.settings
    samples, known = learned.samples, learned.calibration
    assert samples is not None
    assert known is not None
    sites = original.table.sites
    unseen = Evidence(original, held_out, settings).calibration
    sizes = magnitudes(original, samples, settings)
    ranks = {site.site: site.rank for site in plan.factored if site.rank is not None}
    with settings.progress.step("compare methods", len(ranks)) as update:
        test = conclude(compare(sites, ranks, known.stats, unseen.stats, update))
    readers = _readers(sites)
    stats = {key: known.stats[members[0].name] for key, members in readers.items()}
    report = AnalysisReport(
        **Heading(name).fields(),
        calibration=known.origin,
        held_out=unseen.origin,
        budget=plan.budget,
        sites=tuple(_site(*pair) for pair in zip(sites, spectra, strict=True)),
        inputs=tuple(
            _input(key, members, stats[key], sizes[key]) for key, members in readers.items()
        ),
        test=test,
        potential=potential,
        notes=known.notes,
    )
    deviations = [deviation_density(deviations_of(seen)) for seen in stats.values()]
    return Analysis(report, spectra, [sizes[key] for key in stats], deviations)


def ranks_for(tail: NDArray[np.float64] | None) -> tuple[int, ...]:
    """The least ranks that keep :data:`ENERGIES` of the variance; none where it is not known."""
    return () if tail is None else tuple(int(np.argmax(tail <= 1 - e)) for e in ENERGIES)


def _readers(sites: Sequence[LinearSite]) -> Mapping[str, Sequence[LinearSite]]:
    """The plain sites that read each distinct input, in graph order; not those in nested graphs."""
    taps = taps_of(sites)
    readers: dict[str, list[LinearSite]] = {}
    for site in sites:
        if site.name in taps:  # not of a stack, whose matrices go by names of their own
            readers.setdefault(taps[site.name].key, []).append(site)
    return readers


def _site(site: LinearSite, spectrum: SiteSpectrum) -> SiteProfile:
    kind, layer = kind_of(site.name)
    return SiteProfile(
        site=site.name,
        kind=kind,
        layer=layer,
        in_features=site.in_features,
        out_features=site.out_features,
        weights=ranks_for(spectrum.weight_tail),
        inputs=ranks_for(spectrum.input_tail),
        outputs=ranks_for(spectrum.activation_tail),
    )


def _input(
    key: str, readers: Sequence[LinearSite], known: ActivationStats, sizes: Density
) -> InputProfile:
    deviations = deviations_of(known)
    origin = origin_of(readers[0].input)
    return InputProfile(
        input=key,
        kinds=tuple(dict.fromkeys(kind_of(site.name)[0] for site in readers)),
        layer=kind_of(readers[0].name)[1],
        fed_by=origin.kind,
        normalized=origin.normalized,
        units=len(deviations),
        zeros=sizes.zeros,
        median=sizes.quantile(0.5),
        p99=sizes.quantile(0.99),
        deviations=(
            float(deviations.min()),
            float(np.median(deviations)),
            float(deviations.max()),
        ),
        variation=variation(known),
    )
