"""Factors that start at random and are trained: ``python -m studies.random_factors``.

A weight ``W`` ``[K, N]``, scaled to the norm 1, is to become ``A·B`` with ``A`` ``[K, r]`` and
``B`` ``[r, N]``. Three losses are tried, each with what it can be at least (``σ`` are the singular
values of ``W``, ``s`` those of ``A·B``, both descending):

- mean squared error, ``‖W − A·B‖²``: at least the tail ``Σ_{i>r} σ_i²`` (Eckart–Young);
- difference of norms, ``(‖W‖ − ‖A·B‖)²``: 0 for any factors of the right size;
- difference of singular values, ``Σ (σ_i − s_i)²``: the tail, for any singular vectors.

A training has converged when its loss is within ``TOLERANCE`` of the least. What counts is the
*error* ``‖W − A·B‖``, in front of what a truncated SVD leaves. Times are those of the processor, on
one thread, over that of the SVD that gives the same factors at their best.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from threadpoolctl import threadpool_limits

from compress_onnx.pipeline.files.atomic import atomic_file

Matrix = NDArray[np.float64]
WEIGHTS = Path(__file__).parents[2] / "models" / "gettext-marian" / "model.safetensors"
SEEDS = (0, 1, 2)
TOLERANCE = 1e-3
STEPS, PAIRS = 2000, 16
SPREAD = 0.1
"""Standard deviation of an evolution strategy's noise over that of the factors at the start."""
ADAM_RATE = 0.05
"""Of a step over the same."""

logger = logging.getLogger(__name__)


class Factors(NamedTuple):
    """``left`` ``[K, r]`` and ``right`` ``[r, N]``."""

    left: Matrix
    right: Matrix


@dataclass(frozen=True)
class Target:
    """A weight and the rank that it is to have.

    Attributes:
        name: in the table.
        weight: ``[K, N]``, of norm 1.
        rank: of the factors.
        singular_values: of the weight, descending.
        generations: how many an evolution strategy has.
    """

    name: str
    weight: Matrix
    rank: int
    singular_values: Matrix
    generations: int

    @property
    def tail(self) -> float:
        """What the best factors leave: the square of the Eckart–Young bound."""
        return float((self.singular_values[self.rank :] ** 2).sum())

    @property
    def deviation(self) -> float:
        """Of the entries of random factors whose product has about the norm 1."""
        return float((self.weight.size * self.rank) ** -0.25)

    @property
    def rate(self) -> float:
        """Of gradient descent: half of what is still stable at the best factors."""
        return float(0.25 / self.singular_values[0])


class Loss(NamedTuple):
    """A loss of the factors.

    Attributes:
        least: what it can be.
        value: what it is.
        gradients: by both factors.
    """

    least: Callable[[Target], float]
    value: Callable[[Target, Factors], float]
    gradients: Callable[[Target, Factors], Factors]


Trainer = Callable[[Target, Loss, Factors], Iterator[Factors]]


class Trained(NamedTuple):
    """What a training came to.

    Attributes:
        factors: at the end.
        loss: of these.
        steps: taken.
        seconds: of the processor.
    """

    factors: Factors
    loss: float
    steps: int
    seconds: float


def squared_error(target: Target, factors: Factors) -> float:
    """``‖W − A·B‖²``."""
    return float(((target.weight - factors.left @ factors.right) ** 2).sum())


def _squared_error_gradients(target: Target, factors: Factors) -> Factors:
    left, right = factors
    return _through(2 * (left @ right - target.weight), factors)


def _norm(factors: Factors) -> float:
    # ‖A·B‖² = ⟨AᵀA, BBᵀ⟩
    left, right = factors
    return float(np.sqrt(((left.T @ left) * (right @ right.T)).sum()))


def _norm_loss(_target: Target, factors: Factors) -> float:
    return (1 - _norm(factors)) ** 2


def _norm_gradients(_target: Target, factors: Factors) -> Factors:
    left, right = factors
    scale = 2 * (1 - 1 / _norm(factors))
    return Factors(scale * left @ (right @ right.T), scale * (left.T @ left) @ right)


def _values_loss(target: Target, factors: Factors) -> float:
    # The singular values of A·B are those of L·Rᵀ, with A = Q·L and Bᵀ = P·R.
    first, second = np.linalg.qr(factors.left, "r"), np.linalg.qr(factors.right.T, "r")
    found = np.linalg.svd(np.asarray(first) @ np.asarray(second).T, compute_uv=False)
    return target.tail + float(((target.singular_values[: target.rank] - found) ** 2).sum())


def _values_gradients(target: Target, factors: Factors) -> Factors:
    left, first = np.linalg.qr(factors.left)
    right, second = np.linalg.qr(factors.right.T)
    u, found, vt = np.linalg.svd(first @ second.T)
    slopes = 2 * (found - target.singular_values[: target.rank])
    return _through((left @ u * slopes) @ (vt @ right.T), factors)


def _through(slope: Matrix, factors: Factors) -> Factors:
    """The gradients by the factors, of ``slope``, that by their product ``[K, N]``."""
    return Factors(slope @ factors.right.T, factors.left.T @ slope)


LOSSES: Mapping[str, Loss] = {
    "mean squared error": Loss(lambda t: t.tail, squared_error, _squared_error_gradients),
    "difference of norms": Loss(lambda _: 0.0, _norm_loss, _norm_gradients),
    "difference of singular values": Loss(lambda t: t.tail, _values_loss, _values_gradients),
}


def drawn(target: Target, rng: np.random.Generator, deviation: float) -> Factors:
    """Normal noise of the shapes of the factors."""
    height, width = target.weight.shape
    return Factors(
        rng.normal(0, deviation, (height, target.rank)),
        rng.normal(0, deviation, (target.rank, width)),
    )


def descent(target: Target, loss: Loss, factors: Factors) -> Iterator[Factors]:
    """Gradient descent with a constant step."""
    for _ in range(STEPS):
        slopes = loss.gradients(target, factors)
        factors = _moved(factors, slopes, -target.rate)
        yield factors


def adam(target: Target, loss: Loss, factors: Factors) -> Iterator[Factors]:
    """Adam, whose steps shrink to nothing along a cosine."""
    mean = squares = Factors(np.zeros_like(factors.left), np.zeros_like(factors.right))
    for step in range(1, STEPS + 1):
        slopes = loss.gradients(target, factors)
        mean = Factors(*(0.9 * m + 0.1 * g for m, g in zip(mean, slopes, strict=True)))
        squares = Factors(*(0.999 * s + 0.001 * g**2 for s, g in zip(squares, slopes, strict=True)))
        rate = ADAM_RATE * target.deviation * (1 + np.cos(np.pi * step / STEPS)) / 2
        ahead = Factors(
            *(
                (m / (1 - 0.9**step)) / (np.sqrt(s / (1 - 0.999**step)) + 1e-12)
                for m, s in zip(mean, squares, strict=True)
            )
        )
        factors = _moved(factors, ahead, -rate)
        yield factors


def evolution(
    target: Target, loss: Loss, factors: Factors, rng: np.random.Generator
) -> Iterator[Factors]:
    """An evolution strategy: the losses of mirrored pairs of neighbours say where to go.

    Their estimate of the gradient of ``d`` parameters has ``d / PAIRS`` times its squared norm as
    noise, so that the step that gains most is shorter by that.
    """
    spread = SPREAD * target.deviation
    parameters = sum(factor.size for factor in factors)
    rate = target.rate * PAIRS / (parameters + PAIRS)
    for _ in range(target.generations):
        slopes = Factors(np.zeros_like(factors.left), np.zeros_like(factors.right))
        for _ in range(PAIRS):
            noise = drawn(target, rng, 1.0)
            difference = loss.value(target, _moved(factors, noise, spread)) - loss.value(
                target, _moved(factors, noise, -spread)
            )
            slopes = _moved(slopes, noise, difference / (2 * spread * PAIRS))
        factors = _moved(factors, slopes, -rate)
        yield factors


def _moved(factors: Factors, by: Factors, times: float) -> Factors:
    return Factors(factors.left + times * by.left, factors.right + times * by.right)


TRAINERS = ("gradient descent", "Adam", "evolution strategy")


def trained(target: Target, loss: Loss, trainer: str, seed: int) -> Trained:
    """Train factors until the loss is next to its least, or the steps are over."""
    rng = np.random.default_rng(seed)
    start = drawn(target, rng, target.deviation)
    runs: Mapping[str, Trainer] = {
        "gradient descent": descent,
        "Adam": adam,
        "evolution strategy": partial(evolution, rng=rng),
    }
    begun = time.process_time()
    factors, value, steps = start, loss.value(target, start), 0
    for step, candidate in enumerate(runs[trainer](target, loss, start), 1):
        factors, value, steps = candidate, loss.value(target, candidate), step
        if value - loss.least(target) <= TOLERANCE:
            break
    return Trained(factors, value, steps, time.process_time() - begun)


def svd_seconds(target: Target) -> float:
    """What the truncated SVD takes of the processor, the median of several."""
    found = []
    for _ in range(5):
        begun = time.process_time()
        u, values, vt = np.linalg.svd(target.weight, full_matrices=False)
        _ = u[:, : target.rank] * values[: target.rank], vt[: target.rank]
        found.append(time.process_time() - begun)
    return float(np.median(found))


def targets() -> list[Target]:
    """Weights of the committed translation model, at half of their parameters."""
    stored = load_file(WEIGHTS)
    attention = stored["model.encoder.layers.0.self_attn.q_proj.weight"].T.astype(np.float64)
    return [
        as_target("corner of an attention weight", attention[:16, :16], 2000),
        as_target("attention weight", attention, 300),
    ]


def as_target(name: str, weight: Matrix, generations: int) -> Target:
    """``weight`` ``[K, N]`` at norm 1, with the rank that keeps half of its parameters."""
    height, width = weight.shape
    scaled = weight / np.linalg.norm(weight)
    values = np.linalg.svd(scaled, compute_uv=False)
    rank = height * width // (2 * (height + width))
    return Target(name, scaled, rank, values, generations)


def row(target: Target, name: str, trainer: str, svd_s: float) -> list[str]:
    """A line of the table: ranges over the seeds."""
    loss = LOSSES[name]
    runs = [trained(target, loss, trainer, seed) for seed in SEEDS]
    gaps = [run.loss - loss.least(target) for run in runs]
    converged = sum(gap <= TOLERANCE for gap in gaps)
    above = [np.sqrt(squared_error(target, run.factors) / target.tail) for run in runs]
    found = [
        name,
        trainer,
        f"{converged} of {len(runs)}",
        _span([run.steps for run in runs], 0),
        f"{max(gaps):.1e}",
        _span(above, 3),
        _span([run.seconds / svd_s for run in runs], 1),
    ]
    logger.info("%s: %s", target.name, " | ".join(found))
    return found


def _span(values: Sequence[float], digits: int) -> str:
    least, most = (f"{value:,.{digits}f}" for value in (min(values), max(values)))
    return least if least == most else f"{least}–{most}"


HEADER = (
    "loss", "trained by", "converged", "steps", "loss above its least", "error over the bound",
    "time over an SVD's",
)  # fmt: skip


def tables() -> Iterator[str]:
    """One for each weight, as Markdown."""
    for target in targets():
        height, width = target.weight.shape
        bound = np.sqrt(target.tail)
        svd_s = svd_seconds(target)
        yield (
            f"## {target.name.capitalize()}: {height} × {width}, rank {target.rank}\n\n"
            f"{(height + width) * target.rank:,} parameters. The bound, which the SVD reaches, is "
            f"{bound:.3f} of the weight's norm; factors of zero are at {1 / bound:.3f} times it. "
            f"An evolution strategy has at most {target.generations:,} generations of {2 * PAIRS} "
            f"candidates, the others {STEPS:,} steps.\n"
        )
        lines = [list(HEADER), [":---", ":---", *["---:"] * (len(HEADER) - 2)]]
        lines += [row(target, name, trainer, svd_s) for name in LOSSES for trainer in TRAINERS]
        yield "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def page() -> str:
    """The document."""
    about = f"""\
# Factors that start at random

Made by `make random-factors`.

A document that [reproduction.md](reproduction.md) follows has a list of unsuccessful directions:
low-rank factors that start at random and are trained against the weight. Here are figures, on a
weight of `gettext-marian` at half of its parameters, and on a corner of it. Algebra and settings
are in `docs/studies/random_factors.py`.

- **Losses**: mean squared error ‖W − A·B‖²; difference of norms (‖W‖ − ‖A·B‖)²; difference of
  singular values Σ (σᵢ − sᵢ)².
- **Trained by** gradient descent with a constant step, by Adam, and by an evolution strategy of
  mirrored pairs.
- A run has **converged** when its loss is within {TOLERANCE:g} of the least that it can be, in
  units of ‖W‖²; it then ends.
- **Error over the bound** is ‖W − A·B‖ over what a truncated SVD of the same rank leaves.
- **Time over an SVD's** is that of the processor, on one thread, float64. Ranges are over
  {len(SEEDS)} random starts.
"""
    meaning = """\
## What it means

- Of the three losses only the mean squared error knows the weight. The other two are as small as
  they can be for factors that have nothing to do with it: any product of the right norm, or with
  the right singular values in any directions. By gradients they converge at once, and the error
  is still that of a random guess, which is further from the weight than zero is. The singular
  values of the weight cost an SVD, too.
- By gradients the mean squared error gets there, because it has no local minima but the global
  one (only saddles); it takes many times what an SVD takes for the same factors.
- An evolution strategy sees one number for each candidate. A generation of n pairs does what n/d
  of a step of gradient descent does, with d parameters. It works for a corner of a weight, not
  for a weight.
"""
    return "\n".join([about, *tables(), meaning])


def main() -> None:
    """Write the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, nargs="?", default=Path("docs/random-factors.md"))
    output: Path = parser.parse_args().output
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    with threadpool_limits(1):
        text = page()
    with atomic_file(output) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
