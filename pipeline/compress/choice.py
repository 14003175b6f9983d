"""Which trial wins, which are on the front, and what there is to say about it.

Of both sides, ours and what there is without us, the best within the drop meet: the fastest, or
the smallest. Ours wins where it is worth it:

1. It is at least :data:`LEAST_GAIN` times as good.
2. As for speed, the lower end of the 95 % interval of that ratio, from runs in turn, is at least 1.

Where there are several shapes of inputs, the ratio of speeds is the geometric mean of those at
each, and the verdict says at which of them the winner is slower.

The front are the trials that no other beats in both the drop and what is to be least.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from compress_onnx.pipeline.compress.forms import LOW_RANK
from compress_onnx.pipeline.measure.benchmark import Times, speedup, speedup_interval
from compress_onnx.pipeline.recipe import OptimizeSpec
from compress_onnx.pipeline.results import Trial

LEAST_GAIN = 1.02
"""How many times as good as the best rival ours has to be."""


@dataclass(frozen=True)
class Gain:
    """How many times as good one trial is as another, with the 95 % interval.

    ``at`` says by the name of each shape how many times as fast, where there are several.
    """

    value: float
    low: float
    high: float
    at: Mapping[str, float] = field(default_factory=dict)

    @property
    def worth_it(self) -> bool:
        """Whether both rules hold."""
        return self.value >= LEAST_GAIN and self.low >= 1


@dataclass(frozen=True, eq=False)
class Race:
    """Trials that ran in turn.

    Attributes:
        trials: the original first.
        times: nanoseconds ``[shapes, rounds, trials]``.
        spec: what is wanted.
        seed: of the intervals.
        shapes: their names; a single one needs none.
        unstable: trials that depend too much on the batch to be chosen, with their least cosine
            between a sample alone and in a batch.
    """

    trials: Sequence[Trial]
    times: Times
    spec: OptimizeSpec
    seed: int = 0
    shapes: Sequence[str] = ("",)
    unstable: Mapping[str, float] = field(default_factory=dict)

    def with_speeds(self, timed_at: str) -> Race:
        """The same race, whose trials have their speed over the first, the original."""
        found = []
        for trial in self.trials:
            speed = self.speed(trial, self.trials[0])
            measured = {
                "speedup": speed.value,
                "speedup_low": speed.low,
                "speedup_high": speed.high,
                "speedup_at": dict(speed.at),
                "timed_at": timed_at,
            }
            found.append(trial.model_copy(update=measured))
        return replace(self, trials=found)

    def speed(self, ours: Trial, other: Trial) -> Gain:
        """How many times as fast ``ours`` is."""
        names = [trial.name for trial in self.trials]
        pair = self.times[
            ..., [names.index(other.name), names.index(ours.name)]
        ]  # [shapes, rounds, 2]
        at = {shape: speedup(times) for shape, times in zip(self.shapes, pair, strict=True)}
        return Gain(
            speedup(pair),
            *speedup_interval(pair, np.random.default_rng(self.seed)),
            at=at if len(at) > 1 else {},
        )

    def gain(self, ours: Trial, other: Trial) -> Gain:
        """How many times as good ``ours`` is."""
        if self.spec.objective == "size":
            ratio = (other.size_bytes or 0) / (ours.size_bytes or 1)
            return Gain(ratio, ratio, ratio)
        return self.speed(ours, other)

    def best(self, trials: Iterable[Trial]) -> Trial | None:
        """The best within the drop that may be chosen; None where none is."""
        within = [trial for trial in trials if trial.within and trial.name not in self.unstable]
        return min(within, key=self._cost, default=None)

    def choose(self) -> Choice:
        """The best of both sides, and whether ours is worth it."""
        best = self.best(trial for trial in self.trials if not trial.rival)
        fallback = self.best(trial for trial in self.trials if trial.rival)
        assert fallback is not None  # the original is always within
        return Choice(self, best, fallback, None if best is None else self.gain(best, fallback))

    def _cost(self, trial: Trial) -> float:
        return _cost(trial, self.spec) or 0.0


@dataclass(frozen=True, eq=False)
class Choice:
    """The best of ours beside the best that there is without it.

    Attributes:
        race: where both ran.
        best: of ours; None where nothing of ours stays within the drop.
        fallback: the best of the others.
        gain: of ``best`` over ``fallback``.
    """

    race: Race
    best: Trial | None
    fallback: Trial
    gain: Gain | None

    @property
    def winner(self) -> Trial:
        """Ours where it is worth it, else the best of the others."""
        if self.best is not None and self.gain is not None and self.gain.worth_it:
            return self.best
        return self.fallback

    def verdict(self, winner: Trial, inputs: str, tried: Sequence[Trial] = ()) -> str:
        """What won, by how much, over what, at which shapes, and where it is slower.

        That ours or low rank did not win is told, too.

        Args:
            winner: as it was reported on other samples.
            inputs: the shapes that latency was measured at, told where they are one.
            tried: all trials, those that did not run in the race too.
        """
        ours = [trial for trial in (*self.race.trials, *tried) if not trial.rival]
        if ours:
            outcome = self._outcome(winner, inputs)
        else:
            outcome = (
                f"nothing of ours was tried before the time was up: {self.fallback.name} it is"
            )
        return "; ".join(
            filter(None, [outcome, self._slower(), self._unstable(), self._low_rank(ours)])
        )

    def _outcome(self, winner: Trial, inputs: str) -> str:
        spec, fallback = self.race.spec, self.fallback.name
        if self.best is None or self.gain is None:
            return f"nothing of ours stays within {spec.max_drop:g}: {fallback} it is"
        at = f" at {inputs}" if spec.objective == "latency" else ""
        if self.gain.at:
            each = ", ".join(f"{value:.2f} at {shape}" for shape, value in self.gain.at.items())
            at = f" (geometric mean: {each})"
        times = f"{self.gain.value:.2f} times as {self._good}"
        if winner.name != self.best.name:
            doubt = f"less than {LEAST_GAIN} is not worth it"
            if self.gain.value >= LEAST_GAIN:
                doubt = f"that is not sure: the interval begins at {self.gain.low:.2f}"
            return (
                f"{fallback} it is: {self.best.name}, the best of ours within {spec.max_drop:g}, "
                f"is {times}{at}, and {doubt}"
            )
        text = f"{winner.name} is {times} as {fallback}, the best that there is without it{at}"
        if (drop := winner.reported) is None:
            return text
        return f"{text}; on samples that chose nothing it loses {drop.value:.3g} ({drop.quantity})"

    def _slower(self) -> str:
        """At which of several shapes the winner is slower than what there is without it."""
        if self.race.spec.objective == "size":
            return ""
        words = {self.fallback.name: self.fallback.name, self.race.trials[0].name: "the original"}
        return "; ".join(
            f"at {shape} {self.winner.name} is slower than {words[other.name]} "
            f"({value:.3g} times as fast)"
            for other in self.race.trials
            if other.name in words
            for shape, value in self.race.speed(self.winner, other).at.items()
            if value < 1
        )

    def _unstable(self) -> str:
        """What was left out, as its answers depend on the batch."""
        return "; ".join(
            f"{name} was left out: its answers depend on the batch ({cosine:.4f})"
            for name, cosine in self.race.unstable.items()
        )

    def _low_rank(self, tried: Sequence[Trial]) -> str:
        """That low rank was not worth it, and its figure; empty where it was, or was not tried."""
        ours = [trial for trial in self.race.trials if not trial.rival]
        low_rank = self.race.best(trial for trial in ours if _has_low_rank(trial))
        if low_rank is None:
            nothing = (
                "low rank was not worth it: nothing of it that was tried stays within the drop"
            )
            return nothing if any(map(_has_low_rank, tried)) else ""
        if self.winner.name == low_rank.name:
            return ""
        original = self.race.trials[0]
        text = (
            f"low rank was not worth it: the best within the drop is "
            f"{self.race.gain(low_rank, original).value:.2f} times as {self._good} as the original"
        )
        others = self.race.best(trial for trial in ours if not _has_low_rank(trial))
        if others is None:
            return text
        return f"{text}, {others.name} {self.race.gain(others, original).value:.2f}"

    @property
    def _good(self) -> str:
        return "fast" if self.race.spec.objective == "latency" else "small"


def with_front(trials: Iterable[Trial], spec: OptimizeSpec) -> tuple[Trial, ...]:
    """``trials``, each with whether it is on the front of the drop and what is to be least."""
    found = tuple(trials)
    points = {
        trial.name: (trial.drop.value, cost)
        for trial in found
        if trial.drop is not None and (cost := _cost(trial, spec)) is not None
    }
    return tuple(
        trial.model_copy(
            update={
                "on_front": trial.name in points
                and not any(_beats(other, points[trial.name]) for other in points.values())
            }
        )
        for trial in found
    )


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _cost(trial: Trial, spec: OptimizeSpec) -> float | None:
    """What is to be least; None where it was not measured."""
    if spec.objective == "size":
        return trial.size_bytes
    return 1 / trial.speedup if trial.speedup else None


def _has_low_rank(trial: Trial) -> bool:
    return trial.family is not None and LOW_RANK in trial.family
