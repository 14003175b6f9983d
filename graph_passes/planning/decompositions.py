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
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from compress_onnx.graph_passes.arrays import Float64, Indices
from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization import ActivationStats, Known, Method, make_method
from compress_onnx.graph_passes.factorization.base import Decomposition
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

MEMORY_LIMIT_BYTES = 256_000_000
"""What kept factors may take in memory, all together."""


Sites = tuple[str, ...]
"""The names of the sites that share a weight. They tell siblings that were joined in one way from
those that were joined in another, whose weights may have the same name."""


class Decompositions:
    """What is known about each weight, with the decompositions that were made from it.

    Args:
        stats: activation statistics by matrix name; none without calibration.
        memory_limit_bytes: what kept factors may take before they move to the disk.
    """

    def __init__(
        self,
        stats: Mapping[str, ActivationStats] | None = None,
        memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
    ) -> None:
        self.stats: Mapping[str, ActivationStats] = stats or {}
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
        weight = sites[0].weight
        key = method, _names(sites)
        limit = largest_paying_rank(*weight.shape)
        if rank <= limit and key in self._kept:
            return self._kept[key]
        found = decompose(method, weight.array(), self.known(sites))
        nested = found.nested(limit)
        if nested is None:
            return found
        self._kept[key] = nested
        self._shelf.put(nested)
        return nested if rank <= limit else found

    def least(self, sites: Sequence[LinearSite]) -> Float64:
        """``[q + 1]`` the least squared error of the weight at each rank, in the best metric known.

        That is the metric of the inputs where there are statistics, else that of the weight.
        """
        names = _names(sites)
        if names not in self._least:
            known = self.known(sites)
            metric = "weight" if evidence_in(known) == "none" else "activation"
            wanted = names, metric
            kept = [d for (method, key), d in self._kept.items() if (key, method.metric) == wanted]
            found = kept[0] if kept else None
            self._least[names] = least_errors(sites[0].weight.array(), known, found)
        return self._least[names]

    def neurons(self, down: LinearSite, *, with_gradients: bool) -> NeuronOrder:
        """The order in which neurons go from the network that ends in ``down``.

        Args:
            down: a layer about whose inputs there are statistics.
            with_gradients: whether they count by what they do to the model's outputs.
        """
        key = down.name, with_gradients
        if key not in self._orders:
            self._orders[key] = order_neurons(
                down.weight.array(), self._seen(down, with_gradients=with_gradients)
            )
        return self._orders[key]

    def kept_neurons(self, down: LinearSite, plan: SitePlan) -> Indices:
        """``[k]`` those that stay in the network that ends in ``down``, rising.

        Raises:
            RequestError: there are no statistics.
        """
        assert plan.neurons is not None
        with_gradients = _with_gradients(plan)
        return self.neurons(down, with_gradients=with_gradients).kept(plan.neurons)

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
        other = Decompositions({**self.stats, **stats})
        other._kept, other._least, other._shelf = self._kept, self._least, self._shelf
        other._orders = self._orders
        return other


def _with_gradients(plan: SitePlan) -> bool:
    """Whether the neurons of ``plan`` count by what they do to the model's outputs."""
    assert plan.method is not None
    return make_method(plan.method.name, plan.method.options).needs_gradients


def _names(sites: Sequence[LinearSite]) -> Sites:
    return tuple(site.name for site in sites)


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
