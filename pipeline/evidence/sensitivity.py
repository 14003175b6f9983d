"""Measured sensitivity: what an error at one site does to the model's outputs.

One site at a time gets the error that its factorization at the uniform rank would make, everything
else stays exact. Its inputs are then those of the original model, so the error is computed outside,
``(x − μ)·(A·B − W)``, and fed as a shift (:mod:`pipeline.evidence.shifts`) into one session for all
sites; μ is the mean input where the method corrects the bias, and 0 where it does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from compress_onnx.graph_passes.allocation import Candidate
from compress_onnx.graph_passes.allocation.uniform import uniform
from compress_onnx.graph_passes.arrays import Array, Float64
from compress_onnx.graph_passes.factorization import Known, Method
from compress_onnx.graph_passes.planning.decompositions import Decompositions
from compress_onnx.graph_passes.planning.evidence import evidence_in
from compress_onnx.graph_passes.sites.grouping import group_by_weight
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.pipeline.evidence.objective import Objective, change
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.evidence.shifts import can_shift, self_contained, shift_outputs
from compress_onnx.pipeline.files.original import Original
from compress_onnx.pipeline.runtime.batches import check_samples, model_batches
from compress_onnx.pipeline.runtime.inner_values import expose
from compress_onnx.pipeline.runtime.protobuf import serialized
from compress_onnx.pipeline.runtime.samples import Batch, Samples
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run


def measure_slopes(
    original: Original,
    method: Method,
    decompositions: Decompositions,
    samples: Samples,
    settings: RunSettings,
    *,
    share: float,
    objective: Objective = "positions",
) -> dict[str, float]:
    """The squared output change, a sample, for a unit of the method's squared error.

    Args:
        original: the model; never changed.
        method: how the weights are going to be factored.
        decompositions: of the weights; those with a site without statistics are left out.
        samples: a few dozen are enough: one forward run a site goes over them.
        settings: how the model is run.
        share: of the parameters, at which errors are made.
        objective: what about the outputs matters.

    Returns:
        Slopes by weight key.

    Raises:
        DataError: the samples do not fit the model.
    """
    known = {
        k: sites
        for k, sites in group_by_weight(original.table.sites).items()
        if evidence_in(decompositions.known(sites)) != "none" and all(map(can_shift, sites))
    }
    if not known:
        return {}
    sites = [site for members in known.values() for site in members]
    proto = self_contained(original.model, original.data_folder)
    probe = Probe(proto, sites, samples, spec=settings.session, batch_size=settings.batch_size)
    slopes: dict[str, float] = {}
    with settings.progress.step("measure sensitivity", len(known)) as update:
        for key, members in known.items():
            weight = members[0].weight
            rank = uniform([Candidate(key, *weight.shape)], share, 1)[key] or 1
            decomposition = decompositions.of(method, members, rank)
            error = decomposition.energy * float(decomposition.tail[rank])
            residual = decomposition.factorize(rank).product() - weight.array().astype(np.float64)
            changes = [
                change_of(trial, objective)
                for site in members
                for trial in probe.replace(site, residual, _corrected(method, site, decompositions))
            ]
            slopes[key] = sum(changes) / len(samples) / error if error > 0 else 0.0
            update(len(slopes))
    return slopes


def _corrected(method: Method, site: LinearSite, decompositions: Decompositions) -> Float64 | None:
    """The inputs at which the bias makes up for the error; None where the bias stays as it is."""
    return _means(site, decompositions.known([site])) if method.corrects_bias else None


def _means(site: LinearSite, known: Known) -> Float64:
    """``[K]`` the mean input, ``[.., 1, K]`` for the matrices of a stack; 0 where not known."""
    none = np.zeros(site.in_features)
    means: Float64 = np.stack([none if stats is None else stats.mean for stats in known])
    shape = (*site.weight.leading, 1, site.in_features)
    return means.reshape(shape if site.weight.stacked else -1)


@dataclass(frozen=True)
class Trial:
    """One batch through a model with one weight replaced: values before and after, by name."""

    batch: Batch
    original: Mapping[str, Array]
    replaced: Mapping[str, Array]


def change_of(trial: Trial, objective: Objective) -> float:
    """The squared change of the outputs, summed over the samples of the batch."""
    return sum(
        change(trial.original[name], replaced, trial.batch, objective)
        for name, replaced in trial.replaced.items()
        if replaced.dtype.kind == "f"
    )


class Probe:
    """Replaces the weight of one site at a time, in a session with shifts.

    Args:
        proto: the original, with its weights inside; used up.
        sites: those that can be replaced; all of them can be shifted.
        samples: what runs through the model.
        watched: the values to look at; None for the model's outputs.
        spec: how the model is run.
        batch_size: samples at a time.

    Raises:
        DataError: the samples do not fit the model.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        sites: Sequence[LinearSite],
        samples: Samples,
        *,
        watched: Sequence[str] | None = None,
        spec: SessionSpec | None = None,
        batch_size: int = 32,
    ) -> None:
        outputs = [value.name for value in proto.graph.output]
        self._watched = outputs if watched is None else list(watched)
        self._shifts = shift_outputs(proto, sites)
        expose(proto, [*self._watched, *(site.input.name or "" for site in sites)])
        self._session = open_session(serialized(proto), spec)
        check_samples(self._session, samples)
        self._batches: list[tuple[Batch, dict[str, Array]]] = [
            (batch, {**batch.feeds, **run(self._session, batch.feeds)})
            for batch in model_batches(self._session, samples, batch_size)
        ]

    def replace(
        self, site: LinearSite, residual: Float64, mean: Float64 | None = None
    ) -> Iterator[Trial]:
        """Run all batches with ``residual`` [.., K, N] added to the weight of ``site``.

        Args:
            site: which weight; where several sites share it, only this one sees the change.
            residual: what is added.
            mean: ``[K]`` (of a stack ``[.., 1, K]``) the inputs at which the bias makes up for it;
                None corrects no bias.
        """
        for batch, original in self._batches:
            inputs = original[site.input.name or ""]
            rows = np.swapaxes(inputs, -1, -2) if site.transpose_input else inputs
            centred = rows.astype(np.float64) - (0.0 if mean is None else mean)
            shift = (site.alpha * (centred @ residual)).astype(inputs.dtype)
            feeds = {**batch.feeds, self._shifts[site.name]: shift}
            yield Trial(batch, original, run(self._session, feeds, self._watched))


def probing_samples(samples: Samples, limit: int = 64) -> Samples:
    """Evenly spread samples, at most ``limit``."""
    return samples.select(np.unique(np.linspace(0, len(samples) - 1, limit).astype(np.intp)))
