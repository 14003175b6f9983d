"""A plan with its factors, and the model that they make."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import onnx_ir as ir

from compress_onnx.graph_passes.arrays import Indices
from compress_onnx.graph_passes.errors import ModelFileError
from compress_onnx.graph_passes.factorization import Factorization, make_method
from compress_onnx.graph_passes.factorization.neurons import Folded
from compress_onnx.graph_passes.planning.bound import PlanErrors
from compress_onnx.graph_passes.planning.decompositions import Decompositions
from compress_onnx.graph_passes.planning.factoring import (
    FactoredWeight,
    factor_weights,
    thinned_weight,
)
from compress_onnx.graph_passes.planning.fitting import check_fits
from compress_onnx.graph_passes.planning.plan import CompressionPlan, SitePlan
from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass
from compress_onnx.graph_passes.rewriting.initializers import Sink, in_memory
from compress_onnx.graph_passes.rewriting.join_siblings import PartSiblingsPass
from compress_onnx.graph_passes.rewriting.low_rank import LowRankPass
from compress_onnx.graph_passes.rewriting.neurons import NeuronsPass
from compress_onnx.graph_passes.rewriting.told import DAMAGE, ERROR, FORM, KEPT, METHOD, figure
from compress_onnx.graph_passes.sites.grouping import group_by_weight
from compress_onnx.pipeline.compress.basis import Basis
from compress_onnx.pipeline.compress.sequential import Repaired
from compress_onnx.pipeline.files.model_file import data_files, save_model
from compress_onnx.pipeline.files.spill import spill
from compress_onnx.pipeline.runtime.progress import Progress, Silent, Update
from compress_onnx.pipeline.runtime.session import check_loads
from compress_onnx.pipeline.runtime.threads import limited

logger = logging.getLogger(__name__)


class Rewritten(NamedTuple):
    """A rewritten graph, and the plan with the errors that its factors really have."""

    model: ir.Model
    plan: CompressionPlan


@dataclass(frozen=True, eq=False)
class Compressed:
    """What a budget makes of a model.

    Attributes:
        basis: the model, and what decided.
        plan: what every site becomes, without errors: :meth:`evaluated` measures these.
        repaired: what cannot be computed again for a site by itself.
        progress: shows the steps.
        unseen: what samples that nothing was learned from tell about the weights; None without.
    """

    basis: Basis
    plan: CompressionPlan
    repaired: Repaired = field(default_factory=Repaired)
    progress: Progress = field(default_factory=Silent)
    unseen: Decompositions | None = None

    def __str__(self) -> str:
        """What became of how many sites, in one line."""
        plan = self.plan
        thinned = f", {len(plan.thinned)} networks with fewer neurons" if plan.thinned else ""
        return (
            f"{len(plan.factored)} of {len(plan.sites)} sites factored{thinned} ({plan.budget}): "
            f"{plan.parameters_before:,} -> {plan.parameters_after:,} parameters of the selected "
            "weights"
        )

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data."""
        plain: dict[str, Any] = self.plan.model_dump(mode="json")
        return plain

    def evaluated(self) -> CompressionPlan:
        """The plan with the error of each factorization; rewrites nothing."""
        table, kept = self.basis.original.table, self.basis.decompositions
        errors = PlanErrors(table, self.plan, kept, self.unseen)
        for thinned in self._thinned(self.folded()):
            errors.add(thinned)
        with self._factoring() as update:
            weights = factor_weights(table, self.plan, kept, self.repaired.factors)
            for done, factored in enumerate(weights, start=1):
                errors.add(factored)
                update(done)
        return errors.result()

    def factorizations(self) -> Mapping[str, Factorization]:
        """The factors of all weights at once, by weight key: for models that fit into memory."""
        table, kept = self.basis.original.table, self.basis.decompositions
        groups = group_by_weight(table.sites)
        found = dict(self.repaired.factors)
        for site in self.plan.factored:
            if site.weight not in found:
                assert site.method is not None
                assert site.rank is not None
                method = make_method(site.method.name, site.method.options)
                decomposition = kept.of(method, groups[site.weight], site.rank)
                found[site.weight] = decomposition.factorize(site.rank, site.store)
        return found

    def kept_neurons(self) -> Mapping[str, Indices]:
        """``[k]`` the neurons that stay in each network that loses some, by its down layer."""
        downs = {site.name: site for site in self.basis.original.table.sites}
        found: dict[str, Indices] = {}
        for site in self.plan.thinned:
            repaired = self.repaired.networks.get(site.site)
            if repaired is None:
                decompositions = self.basis.decompositions
                found[site.site] = decompositions.kept_neurons(downs[site.site], site)
            else:
                found[site.site] = repaired.kept
        return found

    def folded(self) -> Mapping[str, Folded]:
        """What stays of each feed-forward network that loses neurons, by its down layer's name."""
        kept, found = self.basis.decompositions, dict(self.repaired.networks)
        downs = {site.name: site for site in self.basis.original.table.sites}
        for site in self.plan.thinned:
            if site.site not in found:
                found[site.site] = kept.folded(downs[site.site], site)
        return found

    def _thinned(self, folded: Mapping[str, Folded]) -> list[FactoredWeight]:
        """The down layers of these networks with their errors."""
        downs = {site.name: site for site in self.basis.original.table.sites}
        kept = self.basis.decompositions
        return [
            thinned_weight(downs[site.site], site, folded[site.site], kept)
            for site in self.plan.thinned
        ]

    def rewritten(self, *, keep_metadata: bool = False, sink: Sink = in_memory) -> Rewritten:
        """A new model in memory; the original stays as it is.

        Args:
            keep_metadata: keep what the exporter wrote about sources.
            sink: where the new weights go.

        Raises:
            RequestError: the plan does not fit the model.
        """
        original = self.basis.original
        check_fits(original.table, self.plan)
        model, folded = original.copy(), self.folded()
        with self._factoring() as update:
            low_rank = LowRankPass(
                self.plan,
                progress=update,
                ready=self.repaired.factors,
                elsewhere=self._thinned(folded),
                sink=sink,
                decompositions=self.basis.decompositions,
                unseen=self.unseen,
            )
            low_rank(model)
        if folded:
            told = {site.site: _told(site) for site in low_rank.plan.thinned}
            NeuronsPass(folded, sink=sink, told=told)(model)
        PartSiblingsPass(sink)(model)
        CleanupPass(keep_metadata=keep_metadata)(model)
        return Rewritten(model, low_rank.plan)

    @property
    def model(self) -> ir.Model:
        """The compressed model in memory, made anew each time."""
        return self.rewritten().model

    def write(
        self,
        output: Path | str,
        *,
        keep_metadata: bool = False,
        external_data: bool | None = None,
    ) -> CompressionPlan:
        """Write the model once ONNX Runtime loads it.

        Where the weights come from external data, one at a time is in memory, with its factors.

        Args:
            output: replaced in one step, and only by a model that loads.
            keep_metadata: keep what the exporter wrote about sources.
            external_data: whether weights go into a data file; None decides by size.

        Returns:
            The plan with measured errors.

        Raises:
            RequestError: the plan does not fit the model.
            OutputError: ``output`` cannot be written.
            ModelFileError: ONNX Runtime loads the original, but not the result.
        """
        output, reference = Path(output), self.basis.original.path
        with self._sink_for(output) as sink:
            model, plan = self.rewritten(keep_metadata=keep_metadata, sink=sink)
            save_model(
                model,
                output,
                external_data=external_data,
                check=lambda staged: _check_loads(staged, reference),
            )
        return plan

    @contextmanager
    def _factoring(self) -> Iterator[Update]:
        """The step, within the limits of threads."""
        weights = len({site.weight for site in self.plan.factored})
        with (
            limited(),
            self.progress.step("factor", weights) as update,
        ):
            yield update

    def _sink_for(self, output: Path) -> AbstractContextManager[Sink]:
        large = data_files(self.basis.original.model)
        return spill(output) if large else nullcontext(in_memory)


def _told(site: SitePlan) -> dict[str, str]:
    """What the products of a network that loses neurons tell about it."""
    found = {FORM: "neurons", KEPT: str(site.neurons)}
    if site.method is not None:
        found[METHOD] = site.method.name
    if site.error is not None:
        found[ERROR] = figure(site.error.reached)
    return found if site.damage is None else {**found, DAMAGE: figure(site.damage)}


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
