"""Which trial wins, and what there is to say about it.

A rival wins unless ours is at least :data:`LEAST_GAIN` times as good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compress_onnx.pipeline.recipe import OptimizeSpec
from compress_onnx.pipeline.results import Trial

LEAST_GAIN = 1.02
"""How many times as good as the best rival ours has to be."""


@dataclass(frozen=True)
class Choice:
    """The winner among trials that were timed.

    Attributes:
        spec: what is wanted.
        best: of ours; None where nothing of ours stays within the drop.
        fallback: the best that there is without us; the original is always within.
    """

    spec: OptimizeSpec
    best: Trial | None
    fallback: Trial

    @classmethod
    def among(cls, trials: Sequence[Trial], spec: OptimizeSpec) -> Choice:
        """The best of both sides."""
        best = _best([trial for trial in trials if not trial.rival], spec)
        fallback = _best([trial for trial in trials if trial.rival], spec)
        assert fallback is not None
        return cls(spec, best, fallback)

    @property
    def winner(self) -> Trial:
        """Ours where it is worth it, else the best of the others."""
        worth_it = self.best is not None and self._gain(self.best) >= LEAST_GAIN
        return self.best if self.best is not None and worth_it else self.fallback

    def verdict(self, winner: Trial, inputs: str) -> str:
        """What won, by how much, over what; and that ours did not, where it did not.

        Args:
            winner: as it was reported on other samples.
            inputs: the shapes that latency was measured at.
        """
        what = "fast" if self.spec.objective == "latency" else "small"
        at = f" at {inputs}" if self.spec.objective == "latency" else ""
        if winner.name != self.fallback.name:
            lost = ""
            if (drop := winner.reported) is not None:
                lost = (
                    f"; on samples that chose nothing it loses {drop.value:.3g} ({drop.quantity})"
                )
            return (
                f"{winner.name} is {self._gain(winner):.2f} times as {what} as "
                f"{self.fallback.name}, the best that there is without it{at}{lost}"
            )
        if self.best is None:
            return (
                f"nothing of ours stays within {self.spec.max_drop:g}: {self.fallback.name} it is"
            )
        return (
            f"{self.fallback.name} it is: {self.best.name}, the best of ours within "
            f"{self.spec.max_drop:g}, is {self._gain(self.best):.2f} times as {what}{at}, "
            f"and less than {LEAST_GAIN} is not worth it"
        )

    def _gain(self, ours: Trial) -> float:
        """How many times as good as the fallback ``ours`` is."""
        if self.spec.objective == "size":
            return (self.fallback.size_bytes or 0) / (ours.size_bytes or 1)
        return (ours.speedup or 0) / (self.fallback.speedup or 1)


def smaller(one: Trial, other: Trial) -> bool:
    """Whether ``one`` takes fewer bytes."""
    return (one.size_bytes or 0) < (other.size_bytes or 0)


def _best(trials: Sequence[Trial], spec: OptimizeSpec) -> Trial | None:
    within = [trial for trial in trials if trial.within]
    if spec.objective == "size":
        return min(within, key=lambda trial: trial.size_bytes or 0, default=None)
    return max(within, key=lambda trial: trial.speedup or 0, default=None)
