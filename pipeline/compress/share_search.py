"""The smallest share of a family within a drop, in few trials.

Shares are multiples of 1 / :data:`GRID`. What a share loses beyond its numbers grows with the
damage D that the allocation predicts for it:

1. Once shares were tried, loss = c·D^p goes through the two nearest to the drop: one within and one
   beyond, or the last two.
2. With one of them, the loss is in proportion to D; before any, as in the family before.
3. The smallest share that is predicted to stay within the drop is tried next; where none is, and
   none was, the largest.
4. Where nothing predicts, the middle is tried.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field

GRID = 32
"""Shares are multiples of its reciprocal."""

STEPS = 4
"""How many shares are tried, all of the weights not counted."""

Damage = Callable[[float], float]


@dataclass
class ShareSearch:
    """The search in one family, in which all weights are within the drop.

    Attributes:
        max_drop: what may be lost.
        unavoidable: what the numbers lose with all weights.
        damage: predicted for a share, falling as it rises; None where nothing predicts it.
        loss_per_damage: as another family had it; None before any.
    """

    max_drop: float
    unavoidable: float = 0.0
    damage: Damage | None = None
    loss_per_damage: float | None = None
    _low: int = 0
    _high: int = GRID
    _losses: dict[int, float] = field(default_factory=dict)

    def next(self) -> float | None:
        """The share to try next; None where no further trial is worth it."""
        between = range(self._low + 1, self._high)
        if not between or len(self._losses) >= STEPS:
            return None
        if self.damage is None or self._predicted(self._high - 1) is None:
            return (self._low + self._high) // 2 / GRID if len(between) > 1 else None
        within = bisect_left(between, True, key=self._is_within)
        if within < len(between):
            return between[within] / GRID
        return between[-1] / GRID if self._high == GRID else None

    def tell(self, share: float, drop: float, *, within: bool) -> None:
        """What was tried, and what it lost; infinity where it could not be built."""
        tried, loss = round(share * GRID), drop - self.unavoidable
        self._losses[tried] = loss
        if within:
            self._high = tried
        else:
            self._low = tried
        if self.damage is not None and 0 < loss < math.inf and (damage := self.damage(share)) > 0:
            self.loss_per_damage = loss / damage

    def beyond(self, times: float) -> float | None:
        """The smallest share that is predicted to lose at most so many ``times`` what is allowed.

        The next below those within where all are predicted to lose more; None where nothing
        predicts it, or no share is below.
        """
        between = range(1, self._high)
        if self.damage is None or not between or self._predicted(self._high - 1) is None:
            return None
        found = bisect_left(between, True, key=lambda n: self._is_within(n, times))
        return between[min(found, len(between) - 1)] / GRID

    def _is_within(self, tried: int, times: float = 1.0) -> bool:
        predicted = self._predicted(tried)
        allowed = times * self.max_drop - self.unavoidable
        return predicted is not None and predicted <= allowed

    def _predicted(self, tried: int) -> float | None:
        """The loss (rules 1 and 2); None where nothing predicts it."""
        assert self.damage is not None
        damage = self.damage(tried / GRID)
        ends = [n for n in (self._low, self._high) if n in self._losses]
        known = ends if len(ends) == 2 else list(self._losses)[-2:]
        if len(known) == 2:
            beyond, within = ((self.damage(n / GRID), self._losses[n]) for n in sorted(known))
            if min(within) > 0 and beyond[0] > within[0] and within[1] < beyond[1] < math.inf:
                exponent = math.log(beyond[1] / within[1]) / math.log(beyond[0] / within[0])
                return within[1] * math.pow(damage / within[0], exponent)
        return None if self.loss_per_damage is None else self.loss_per_damage * damage
