"""What several sets of samples say together, each by its share, and shrunk towards the identity.

The calibration data say what a model reads there, and only there. Its metric is pulled towards a
broader one with a strength a, the share of the broader one::

    towards broader sets      1 − a for calibration, a for the other sets, each of them alike
    towards the identity      C ← (1 − a) C + a (tr C / K) I, of inputs and of gradients

Second moments add up, so mixing moments is the same as mixing samples that have weights: that of a
sample is the share of its set, divided by the number of samples there. Each set is run once; every
strength is arithmetic. A set with a share of zero is not run at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization import ActivationStats, GradientStats, Method
from compress_onnx.graph_passes.planning.decompositions import Decompositions
from compress_onnx.graph_passes.planning.request import Shrinkage
from compress_onnx.pipeline.evidence.collected import Evidence
from compress_onnx.pipeline.evidence.gradients import OutputGradients
from compress_onnx.pipeline.evidence.objective import Objective
from compress_onnx.pipeline.runtime.samples import Samples


@dataclass(frozen=True)
class Weighted:
    """A set of samples, each of which counts ``weight`` times."""

    samples: Samples
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Mixture:
    """Evidence of several sets.

    Attributes:
        parts: what is known from each set.
        shares: how much each counts, 1 together and none of them 0.
        identity: how strongly the metric is pulled towards the identity.
    """

    parts: Sequence[Evidence]
    shares: Sequence[float] = (1.0,)
    identity: float = 0.0

    @property
    def sets(self) -> list[Weighted]:
        """The samples, with 1 as the mean weight of all."""
        total = sum(map(len, self._samples))
        return [
            Weighted(samples, share * total / len(samples))
            for samples, share in zip(self._samples, self.shares, strict=True)
        ]

    @cached_property
    def stats(self) -> Mapping[str, ActivationStats]:
        """Activation statistics by matrix name, without gradients.

        Matrices that read one input share theirs.
        """
        if len(self.parts) == 1 and not self.identity:
            return self.parts[0].stats
        made: dict[tuple[int, ...], ActivationStats] = {}
        found: dict[str, ActivationStats] = {}
        for name in _names(part.stats for part in self.parts):
            key = tuple(id(part.stats.get(name)) for part in self.parts)
            if key not in made:
                made[key] = self._mixed(name)
            found[name] = made[key]
        return found

    def with_gradients(self, gradients: OutputGradients) -> dict[str, ActivationStats]:
        """The statistics with the gradients of each site beside its activations."""
        return {
            name: replace(known, gradients=gradients.stats.get(name))
            for name, known in self.stats.items()
        }

    def gradients(self, objective: Objective) -> OutputGradients:
        """Gradients of what ``objective`` says of the outputs; those of positions set after set.

        Raises:
            NotDifferentiableError: the model has none.
        """
        found = [part.gradients(objective) for part in self.parts]
        if len(found) == 1 and not self.identity:
            return found[0]
        stats: dict[str, GradientStats] = {}
        for name in _names(each.stats for each in found):
            having = [
                (each.stats[name], share)
                for each, share in zip(found, self.shares, strict=True)
                if name in each.stats
            ]
            mixed = GradientStats.mixed([s for s, _ in having], [share for _, share in having])
            stats[name] = mixed.shrunk(self.identity)
        weights = {
            site: [batch for each in found for batch in each.weights.get(site, ())]
            for site in _names(each.weights for each in found)
        }
        return OutputGradients(stats, weights)

    def slopes(
        self, method: Method, objective: Objective, decompositions: Decompositions
    ) -> Mapping[str, float]:
        """As :meth:`~pipeline.evidence.collected.Evidence.slopes`: changes add up by the shares."""
        found = [part.slopes(method, objective, decompositions) for part in self.parts]
        return {
            name: sum(
                share * each.get(name, 0.0) for each, share in zip(found, self.shares, strict=True)
            )
            for name in _names(found)
        }

    @property
    def _samples(self) -> list[Samples]:
        return [part.samples for part in self.parts]

    def _mixed(self, name: str) -> ActivationStats:
        having = [
            (part.stats[name], share, len(part.samples))
            for part, share in zip(self.parts, self.shares, strict=True)
            if name in part.stats
        ]
        parts, shares, sizes = zip(*having, strict=True)
        return ActivationStats.mixed(parts, shares, sizes).shrunk(self.identity)


def pulled(
    evidence: Evidence, broader: Mapping[str, Evidence], shrinkage: Shrinkage | None
) -> Mixture:
    """What ``evidence`` of the calibration data tells, pulled as ``shrinkage`` says.

    Args:
        evidence: of the calibration data.
        broader: that of each broader set, by name.
        shrinkage: with a strength; None pulls nowhere.

    Raises:
        RequestError: there is nothing to pull towards, or the strength is still open.
    """
    if shrinkage is None or not shrinkage.strength:
        return Mixture([evidence])
    if shrinkage.strength == "auto":
        raise RequestError("a plan says how strong its shrinkage is: write a number, not auto")
    if shrinkage.towards == "identity":
        return Mixture([evidence], identity=shrinkage.strength)
    if not broader:
        raise RequestError(
            "shrinkage towards broader data needs some: give broader sets, or shrink towards "
            "identity"
        )
    parts, share = list(broader.values()), shrinkage.strength / len(broader)
    if shrinkage.strength == 1:
        return Mixture(parts, [share] * len(parts))
    return Mixture([evidence, *parts], [1 - shrinkage.strength, *[share] * len(parts)])


def _names(known: Iterable[Iterable[str]]) -> list[str]:
    """The names of all mappings, each once, in the order in which they come."""
    return list(dict.fromkeys(name for each in known for name in each))
