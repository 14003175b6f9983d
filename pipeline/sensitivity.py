"""Measured sensitivity: what an error at one site does to the model's outputs.

One site at a time gets the error that its factorization at the uniform rank would make, everything
else stays exact. Its inputs are then those of the original model, so the error is computed outside,
``(x − μ)·(A·B − W)``, and fed as a shift (:mod:`pipeline.shifts`) into one session for all sites.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from graph_passes.allocation import Candidate
from graph_passes.allocation.uniform import uniform
from graph_passes.factorization import ActivationStats, Method
from graph_passes.factorization.base import Float64
from graph_passes.planning import WeightGroups
from graph_passes.sites import LinearSite
from pipeline.data.samples import Array, Batch, Samples
from pipeline.objective import Objective, change
from pipeline.session import SessionSpec, open_session, run
from pipeline.shifts import can_shift, self_contained, shift_outputs
from pipeline.validate import check_samples, model_batches


def measure_slopes(
    model: ir.Model,
    groups: WeightGroups,
    method: Method,
    stats: Mapping[str, ActivationStats],
    samples: Samples,
    *,
    share: float,
    data_folder: Path,
    objective: Objective = "positions",
    spec: SessionSpec | None = None,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """The squared output change, a sample, for a unit of the method's squared error.

    Args:
        model: unchanged afterwards.
        groups: the sites by weight key.
        method: how the weights are going to be factored.
        stats: activation statistics by site name; weights with a site that has none are left out.
        samples: a few dozen are enough: one forward run a site goes over them.
        share: of the parameters, at which errors are made.
        data_folder: where the model's external data lies.
        objective: what about the outputs matters.
        spec: how the model is run.
        batch_size: samples at a time.
        progress: called with the number of weights done, after each.

    Raises:
        DataError: the samples do not fit the model.
    """
    known = {
        k: sites
        for k, sites in groups.items()
        if all(s.name in stats and can_shift(s) for s in sites)
    }
    sites = [site for members in known.values() for site in members]
    proto = self_contained(model, data_folder)
    probe = _Probe(proto, sites, samples, objective=objective, spec=spec, batch_size=batch_size)
    slopes: dict[str, float] = {}
    for key, members in known.items():
        weight = members[0].weight.array()
        merged = ActivationStats.merge(stats[site.name] for site in members)
        decomposition = method.decompose(weight, merged)
        rank = uniform([Candidate(key, *weight.shape)], share, 1)[key] or 1
        error = decomposition.energy * float(decomposition.tail[rank])
        residual = decomposition.factorize(rank).product() - weight.astype(np.float64)
        changes = [probe.change(site, residual, stats[site.name].mean) for site in members]
        slopes[key] = sum(changes) / error if error > 0 else 0.0
        if progress is not None:
            progress(len(slopes))
    return slopes


class _Probe:
    """A session with shifts, and the original's site inputs and outputs on some batches."""

    def __init__(
        self,
        proto: onnx.ModelProto,
        sites: Sequence[LinearSite],
        samples: Samples,
        *,
        objective: Objective,
        spec: SessionSpec | None,
        batch_size: int,
    ) -> None:
        self._outputs = [value.name for value in proto.graph.output]
        self._shifts = shift_outputs(proto, sites)
        self._objective = objective
        self._samples = len(samples)
        feeds = {value.name for value in proto.graph.input}
        inputs = sorted({site.input.name or "" for site in sites} - feeds - set(self._outputs))
        for name in inputs:
            proto.graph.output.add().name = name
        self._session = open_session(proto.SerializeToString(), spec)
        check_samples(self._session, samples)
        self._batches: list[tuple[Batch, dict[str, Array]]] = [
            (batch, {**batch.feeds, **run(self._session, batch.feeds, [*self._outputs, *inputs])})
            for batch in model_batches(self._session, samples, batch_size)
        ]

    def change(self, site: LinearSite, residual: Float64, mean: Float64) -> float:
        """The squared output change, a sample, when ``residual`` is added to the weight."""
        changes = [self._change(site, residual, mean, *batch) for batch in self._batches]
        return sum(changes) / self._samples

    def _change(
        self,
        site: LinearSite,
        residual: Float64,
        mean: Float64,
        batch: Batch,
        original: Mapping[str, Array],
    ) -> float:
        inputs = original[site.input.name or ""]
        rows = (np.swapaxes(inputs, -1, -2) if site.transpose_input else inputs).astype(np.float64)
        shift = (site.alpha * ((rows - mean) @ residual)).astype(inputs.dtype)
        feeds = {**batch.feeds, self._shifts[site.name]: shift}
        shifted = run(self._session, feeds, self._outputs)
        return sum(
            change(original[name], shifted[name], batch, self._objective)
            for name in self._outputs
            if original[name].dtype.kind == "f"
        )


def probing_samples(samples: Samples, limit: int = 64) -> Samples:
    """Evenly spread samples, at most ``limit``."""
    return samples.select(np.unique(np.linspace(0, len(samples) - 1, limit).astype(np.intp)))
