"""Rank allocation: how a budget is shared out among weights.

An allocator is a rule that shares the budget out. It goes by the *price* of each weight at each
rank (:mod:`graph_passes.allocation.price`) and, if it needs that, by the *damage*: what each weight
costs the model at each rank. Where they come from is not its concern.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

from compress_onnx.graph_passes.allocation.price import LinearPrice, Price
from compress_onnx.graph_passes.arrays import Float64

Damage = Literal["none", "energy", "sensitivity", "gauss-newton"]


@dataclass(frozen=True)
class Candidate:
    """A weight that could be factored: one matrix [in_features, out_features], or several.

    Attributes:
        key: identifies it.
        in_features, out_features: its shape.
        matrices: how many.
        damage: ``[max_rank + 1]`` what the model loses at each rank, never rising, in one unit for
            all candidates; None where the allocator does not ask.
        quoted: its price where the budget is not one of parameters.
    """

    key: str
    in_features: int
    out_features: int
    matrices: int = 1
    damage: Float64 | None = None
    quoted: Price | None = None

    @cached_property
    def price(self) -> Price:
        """What it takes of the budget."""
        return self.quoted or LinearPrice(self.dense, self.cost)

    @property
    def cost(self) -> int:
        """Parameters that one unit of rank costs."""
        return self.matrices * (self.in_features + self.out_features)

    @property
    def dense(self) -> int:
        """Parameters of the weight as it is."""
        return self.matrices * self.in_features * self.out_features

    @property
    def max_rank(self) -> int:
        """The rank at which factors are exact."""
        return min(self.in_features, self.out_features)

    def pays(self, rank: int) -> bool:
        """Whether factors of ``rank`` are smaller than the weight, and take less of the budget."""
        return rank * self.cost < self.dense and self.price.at(rank) < self.price.dense


@dataclass(frozen=True)
class NeuronCandidate(Candidate):
    """A feed-forward network that could lose neurons: ``in_features`` of them.

    ``out_features`` are the parameters that each neuron has in all its weights; the rank is the
    number of neurons that stay.
    """

    @property
    def cost(self) -> int:
        """Parameters of a neuron."""
        return self.out_features

    @property
    def max_rank(self) -> int:
        """All neurons."""
        return self.in_features


class Rule(Protocol):
    """Shares a budget out; deterministic."""

    def __call__(
        self, candidates: Sequence[Candidate], share: float, multiple: int
    ) -> Mapping[str, int | None]:
        """Return a rank for each candidate's key; None where it had better stay dense.

        Args:
            candidates: all weights that may be factored.
            share: of the candidates' summed dense prices, what may be kept.
            multiple: ranks are multiples of this where they reach it.
        """


@dataclass(frozen=True)
class Allocator:
    """A way to share the budget out, and the damage that it goes by."""

    rule: Rule
    damage: Damage

    def __call__(
        self, candidates: Sequence[Candidate], share: float, multiple: int
    ) -> Mapping[str, int | None]:
        """As :class:`Rule`."""
        return self.rule(candidates, share, multiple)


def round_rank(rank: float, multiple: int, max_rank: int) -> int:
    """``rank`` rounded down to ``multiple`` where it reaches it; between 1 and ``max_rank``."""
    whole = int(rank)
    if whole >= multiple:
        whole -= whole % multiple
    return max(1, min(whole, max_rank))
