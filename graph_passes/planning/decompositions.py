"""One decomposition a weight, kept: what a model's weights lose at every rank, and their factors.

Factors of a rank are the first columns of ``down`` and the first rows of ``up`` of every larger
rank, so one decomposition answers for all budgets. It is cut at the largest rank that can pay,
``r·(K + N) < K·N``; the cut factors take no more numbers than the weight itself.

Rules:

1. A method's decomposition of a weight is computed when it is first needed, and kept.
2. The least error at each rank needs singular values only; these are kept too.
3. Above a limit, the factors that were kept first move into temporary files, from which only the
   ranks that are asked for are read.
4. Several stages factor what rounding left of the earlier ones: such factors are not nested, and
   are computed again for each rank.
5. Weights are independent of each other: many of them are decomposed as :data:`Spread` carries jobs
   out, which is one after the other unless somebody passes another way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol, TypeVar

from compress_onnx.graph_passes.arrays import Array, Float64, Indices
from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization import ActivationStats, Known, Method, make_method
from compress_onnx.graph_passes.factorization.base import Decomposition, ErrorMetric
from compress_onnx.graph_passes.factorization.error import least_errors
from compress_onnx.graph_passes.factorization.nested import NestedFactors
from compress_onnx.graph_passes.factorization.neurons import (
    Folded,
    NeuronOrder,
    fold,
    order_neurons,
)
from compress_onnx.graph_passes.factorization.stack import decompose
from compress_onnx.graph_passes.planning.evidence import evidence_in, statistics_of
from compress_onnx.graph_passes.planning.plan import SitePlan
from compress_onnx.graph_passes.sites.linear_site import LinearSite

MEMORY_LIMIT_BYTES = 64_000_000
"""What kept factors may take in memory, all together."""


Sites = tuple[str, ...]
"""The names of the sites that share a weight. They tell siblings that were joined in one way from
those that were joined in another, whose weights may have the same name."""


Item = TypeVar("Item")
Result = TypeVar("Result")


class Spread(Protocol):
    """A way to carry out jobs that do not depend on each other."""

    def __call__(
        self, work: Callable[[Item], Result], items: Iterable[Item], /
    ) -> Iterator[Result]:
        """The results of ``work`` on ``items``, in their order; an item is made when it is due."""


def one_by_one(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Carry out one job after the other, each when its result is asked for."""
    return map(work, items)


class Decompositions:
    """What is known about each weight, with the decompositions that were made from it.

    Args:
        stats: activation statistics by matrix name; none without calibration.
        memory_limit_bytes: what kept factors may take before they move to the disk.
        spread: how many weights are decomposed, or factored.
    """

    def __init__(
        self,
        stats: Mapping[str, ActivationStats] | None = None,
        memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
        spread: Spread = one_by_one,
    ) -> None:
        self.stats: Mapping[str, ActivationStats] = stats or {}
        self.spread = spread
        self._kept: dict[tuple[Method, Sites], Decomposition] = {}
        self._least: dict[Sites, Float64] = {}
        self._orders: dict[tuple[str, bool], NeuronOrder] = {}
        self._shelf = _Shelf(memory_limit_bytes)

    def known(self, sites: Sequence[LinearSite]) -> Known:
        """The statistics of each matrix of the weight that ``sites`` share."""
        return statistics_of(sites, self.stats)

    def of(self, method: Method, sites: Sequence[LinearSite], rank: int = 1) -> Decomposition:
        """The decomposition by ``method`` of the weight that ``sites`` share, good for ``rank``.

        Raises:
            ValueError: the method needs statistics that there are not.
        """
        kept = self.kept(method, sites, rank)
        if kept is not None:
            return kept
        found = decompose(method, sites[0].weight.array(), self.known(sites))
        nested = self.keep(method, sites, found)
        return nested if nested is not None and rank <= _limit(sites) else found

    def of_all(
        self, method: Method, weights: Sequence[Sequence[LinearSite]]
    ) -> Iterator[Decomposition]:
        """As :meth:`of`, of each of ``weights``: those that are not kept are spread.

        Raises:
            ValueError: the method needs statistics that there are not.
        """
        missing = [sites for sites in weights if self.kept(method, sites) is None]
        made = self.spread(_decomposed, (self._job(method, sites) for sites in missing))
        for sites in weights:
            kept = self.kept(method, sites)
            if kept is None:
                found = next(made)
                kept = self.keep(method, sites, found) or found
            yield kept

    def kept(
        self, method: Method, sites: Sequence[LinearSite], rank: int = 1
    ) -> Decomposition | None:
        """What is kept of the weight that ``sites`` share, where that is good for ``rank``."""
        return self._kept.get((method, _names(sites))) if rank <= _limit(sites) else None

    def keep(
        self, method: Method, sites: Sequence[LinearSite], found: Decomposition
    ) -> Decomposition | None:
        """Keep ``found``; returns what is kept of it, None where its factors are not nested."""
        nested = found.nested(_limit(sites))
        if nested is not None:
            self._kept[method, _names(sites)] = nested
            self._shelf.put(nested)
        return nested

    def least(self, sites: Sequence[LinearSite]) -> Float64:
        """``[q + 1]`` the least squared error of the weight at each rank, in the best metric known.

        That is the metric of the inputs where there are statistics, else that of the weight.
        """
        found = self.kept_least(sites)
        if found is None:
            found = least_errors(sites[0].weight.array(), self.known(sites))
            self.keep_least(sites, found)
        return found

    def kept_least(self, sites: Sequence[LinearSite]) -> Float64 | None:
        """As :meth:`least` where that is known, or follows from what is kept."""
        names, known = _names(sites), self.known(sites)
        if names not in self._least:
            wanted = names, metric_of(known)
            kept = [d for (method, key), d in self._kept.items() if (key, method.metric) == wanted]
            if not kept:
                return None
            self._least[names] = least_errors(sites[0].weight.array(), known, kept[0])
        return self._least[names]

    def keep_least(self, sites: Sequence[LinearSite], least: Float64) -> None:
        """Keep what :meth:`least` is of the weight that ``sites`` share."""
        self._least[_names(sites)] = least

    def _job(self, method: Method, sites: Sequence[LinearSite]) -> _Job:
        return _Job(method, sites[0].weight.array(), self.known(sites), _limit(sites))

    def neurons(self, downs: Sequence[LinearSite], *, with_gradients: bool) -> list[NeuronOrder]:
        """The order in which neurons go from each network that ends in one of ``downs``.

        Args:
            downs: layers about whose inputs there are statistics.
            with_gradients: whether they count by what they do to the model's outputs.
        """
        missing = [down for down in downs if (down.name, with_gradients) not in self._orders]
        jobs = (
            (down.weight.array(), self._seen(down, with_gradients=with_gradients))
            for down in missing
        )
        for down, order in zip(missing, self.spread(_ordered, jobs), strict=True):
            self._orders[down.name, with_gradients] = order
        return [self._orders[down.name, with_gradients] for down in downs]

    def kept_neurons(self, down: LinearSite, plan: SitePlan) -> Indices:
        """``[k]`` those that stay in the network that ends in ``down``, rising.

        Raises:
            RequestError: there are no statistics.
        """
        assert plan.neurons is not None
        with_gradients = _with_gradients(plan)
        (order,) = self.neurons([down], with_gradients=with_gradients)
        return order.kept(plan.neurons)

    def folded(self, down: LinearSite, plan: SitePlan) -> Folded:
        """What stands for ``down`` where ``plan`` lets some neurons stay.

        Raises:
            RequestError: there are no statistics.
        """
        stats = self._seen(down, with_gradients=_with_gradients(plan))
        return fold(down.weight.array(), stats, self.kept_neurons(down, plan))

    def _seen(self, down: LinearSite, *, with_gradients: bool) -> ActivationStats:
        (stats,) = self.known([down])
        if stats is None:
            raise RequestError(
                f"the neurons of {down.name} are chosen by what they compute: give calibration data"
            )
        return stats if with_gradients else replace(stats, gradients=None)

    def extended(self, stats: Mapping[str, ActivationStats]) -> Decompositions:
        """The same with statistics of more sites; what is kept is shared."""
        other = Decompositions({**self.stats, **stats}, spread=self.spread)
        other._kept, other._least, other._shelf = self._kept, self._least, self._shelf
        other._orders = self._orders
        return other


@dataclass(frozen=True)
class _Job:
    """All that decomposing one weight [.., K, N] takes; what is kept is cut at ``limit``."""

    method: Method
    weight: Array
    known: Known
    limit: int


def _decomposed(job: _Job) -> Decomposition:
    """Nested where it can be: what was decomposed and its metric need not come back."""
    found = decompose(job.method, job.weight, job.known)
    return found.nested(job.limit) or found


def _ordered(job: tuple[Array, ActivationStats]) -> NeuronOrder:
    return order_neurons(*job)


def metric_of(known: Known) -> ErrorMetric:
    """In which metric the least error of a weight is told, about whose inputs so much is known."""
    return "weight" if evidence_in(known) == "none" else "activation"


def _with_gradients(plan: SitePlan) -> bool:
    """Whether the neurons of ``plan`` count by what they do to the model's outputs."""
    assert plan.method is not None
    return make_method(plan.method.name, plan.method.options).needs_gradients


def _names(sites: Sequence[LinearSite]) -> Sites:
    return tuple(site.name for site in sites)


def _limit(sites: Sequence[LinearSite]) -> int:
    return largest_paying_rank(*sites[0].weight.shape)


def largest_paying_rank(rows: int, columns: int) -> int:
    """The largest rank whose factors are smaller than a weight [rows, columns]; 1 at least."""
    return max(1, (rows * columns - 1) // (rows + columns))


class _Shelf:
    """Kept factors, the first of which move to the disk when all together grow too large."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._in_memory: list[NestedFactors] = []
        self._folder: TemporaryDirectory[str] | None = None
        self._files = 0

    def put(self, found: Decomposition) -> None:
        self._in_memory += [part for part in found.parts if isinstance(part, NestedFactors)]
        while sum(part.nbytes for part in self._in_memory) > self._limit_bytes:
            self._move(self._in_memory.pop(0))

    def _move(self, factors: NestedFactors) -> None:
        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="compress-onnx-")
        factors.move_to(Path(self._folder.name) / str(self._files))
        self._files += 1
