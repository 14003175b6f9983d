"""A table: every row measured, the timed ones interleaved, each figure with its interval.

Speeds are ratios of medians, over the original and over dynamic int8, with 95 % intervals. A row
that could not be made says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import CompressOnnxError
from compress_onnx.pipeline.files.model_file import model_size
from compress_onnx.pipeline.measure.batch_invariance import batch_invariance
from compress_onnx.pipeline.measure.benchmark import (
    BoundModel,
    Times,
    interleave,
    speedup,
    speedup_interval,
)
from compress_onnx.pipeline.measure.fresh_process import in_fresh_process, save_feeds
from compress_onnx.pipeline.measure.validate import validate
from compress_onnx.pipeline.report import formats
from compress_onnx.pipeline.runtime.progress import Progress
from compress_onnx.pipeline.runtime.session import SessionSpec
from studies.performance.rows import DYNAMIC, ORIGINAL, Row
from studies.performance.subject import Subject

WARMUP = 5
BASES = ORIGINAL, DYNAMIC
"""What speeds are ratios over."""

Feeds = Mapping[str, Array]


class Line(NamedTuple):
    """A row of the table.

    Attributes:
        name: of the model.
        figures: accuracy, memory, size: what stands in front of the speeds.
        speeds: by base and by inputs.
    """

    name: str
    figures: Mapping[str, str]
    speeds: Mapping[tuple[str, str], str] = {}


@dataclass(frozen=True)
class Built:
    """Models that could be written, and lines for the others."""

    paths: Mapping[str, Path]
    missing: tuple[Line, ...]


def build(rows: Iterable[Row], folder: Path, progress: Progress) -> Built:
    """Write all models into ``folder``."""
    paths: dict[str, Path] = {}
    missing: list[Line] = []
    for index, row in enumerate(rows):
        path = folder / str(index) / "model.onnx"
        path.parent.mkdir()
        try:
            with progress.step(f"build {row.name}"):
                row.build(path)
        except CompressOnnxError as problem:
            missing.append(absent(row.name, str(problem)))
        else:
            paths[row.name] = path
    return Built(paths, tuple(missing))


def absent(name: str, reason: str) -> Line:
    """The line of a model that there is none of."""
    return Line(f"{name}: not measured, {reason.replace('|', '/')}", {})


def time_models(paths: Sequence[Path], feeds: Feeds, spec: SessionSpec, rounds: int) -> Times:
    """Nanoseconds ``[rounds, models]``, interleaved."""
    models = [BoundModel(path, feeds, spec) for path in paths]
    rng = np.random.default_rng(0)
    interleave(models, WARMUP, rng)
    return interleave(models, rounds, rng)


def ratios(times: Times, names: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """``(name, base, text)``: the speed of each model over each base, ``[rounds, models]``."""
    rng = np.random.default_rng(0)
    for base in BASES:
        if base not in names:
            continue
        for index, name in enumerate(names):
            pair = times[:, [names.index(base), index]]
            low, high = speedup_interval(pair, rng)
            yield name, base, f"{speedup(pair):.2f} [{low:.2f}, {high:.2f}]"


def speeds_of(
    times: Mapping[str, Times], names: Sequence[str]
) -> dict[str, dict[tuple[str, str], str]]:
    """By model, the speeds of :class:`Line`; ``times`` are by inputs."""
    found: dict[str, dict[tuple[str, str], str]] = {name: {} for name in names}
    for inputs, measured in times.items():
        for name, base, text in ratios(measured, names):
            found[name][base, inputs] = text
    return found


def accuracy(subject: Subject, path: Path) -> dict[str, str]:
    """Held-out cosine, batch invariance and size of one model."""
    settings = subject.material.settings
    report = validate(
        subject.material.original.path,
        path,
        subject.held_out,
        metric=subject.metric,
        spec=settings.session,
        batch_size=settings.batch_size,
    )
    cosine = report.metrics.get("cosine", min(row.cosine or 0 for row in report.outputs))
    alike = batch_invariance(path, subject.held_out, settings.session)
    return accuracy_cells(cosine, alike, model_size(path, path).candidate_bytes)


def accuracy_cells(cosine: float, in_a_batch: float, file_bytes: int) -> dict[str, str]:
    """The figures of a model whose accuracy is measured."""
    return {
        "cosine": f"{cosine:.4f}",
        "in a batch": f"{in_a_batch:.5f}",
        "file": formats.size(file_bytes),
    }


def memory(path: Path, feeds: Feeds, spec: SessionSpec) -> dict[str, str]:
    """Size, and what a process of its own takes more once it has run the model."""
    data = path.with_name("memory.npz")
    save_feeds(feeds, data)
    _, grown_bytes = in_fresh_process(path, data, spec)
    data.unlink()
    return {
        "file": formats.size(model_size(path, path).candidate_bytes),
        "memory": formats.size(int(grown_bytes)),
    }


def render(lines: Sequence[Line], figures: Sequence[str], inputs: Sequence[str]) -> Iterator[str]:
    """Markdown; speeds over the original have their inputs as heading, others their base too."""
    columns = [(base, size) for base in BASES for size in inputs]
    heads = [size if base == ORIGINAL else f"{size}, over {base}" for base, size in columns]
    yield f"| {' | '.join(['', *figures, *heads])} |"
    yield f"|:---|{'---:|' * (len(figures) + len(heads))}"
    for line in lines:
        cells = [line.figures.get(name, formats.MISSING) for name in figures]
        cells += [line.speeds.get(column, formats.MISSING) for column in columns]
        yield f"| {' | '.join([line.name, *cells])} |"
