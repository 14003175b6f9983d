"""A table: every row measured, the timed ones interleaved, each figure with its interval.

Speeds are ratios of medians with 95 % intervals: one table is over the original, with accuracy or
memory, one over dynamic int8. A row that could not be made says why.

Not all models fit in memory at once. They run in groups, each interleaved with both bases, so that
every ratio is of two models that took turns.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import CompressOnnxError
from compress_onnx.graph_passes.rewriting.unfused_norms import UnfuseNormsPass
from compress_onnx.pipeline.compress.form_times import Make, Speed
from compress_onnx.pipeline.files.model_file import model_size, save_model
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
from compress_onnx.pipeline.recipe import EmbeddingMetric, RetrievalMetric
from compress_onnx.pipeline.report import formats
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import SessionSpec
from studies.performance.rows import DYNAMIC, ORIGINAL, Row
from studies.performance.subject import Subject

_log = logging.getLogger(__name__)

WARMUP = 5
BASES = ORIGINAL, DYNAMIC
"""What speeds are ratios over."""

GROUP_BYTES = 1_000_000_000
"""How large the files may be together that run in turn with the bases. In memory they take more."""

Feeds = Mapping[str, Array]
Speeds = dict[tuple[str, str], str]
"""By base and by inputs."""


class Line(NamedTuple):
    """A row of the table.

    Attributes:
        name: of the model.
        figures: accuracy, memory, size: what stands in front of the speeds.
        speeds: ratios over the bases.
    """

    name: str
    figures: Mapping[str, str]
    speeds: Mapping[tuple[str, str], str] = {}


@dataclass(frozen=True)
class Built:
    """Models that could be written, and lines for the others."""

    paths: Mapping[str, Path]
    missing: tuple[Line, ...]


def build(rows: Iterable[Row], folder: Path) -> Built:
    """Write all models into ``folder``."""
    paths: dict[str, Path] = {}
    missing: list[Line] = []
    for index, row in enumerate(rows):
        path = folder / str(index) / "model.onnx"
        path.parent.mkdir()
        _log.info("building %s", row.name)
        try:
            row.build(path)
        except CompressOnnxError as problem:
            missing.append(absent(row.name, str(problem)))
        else:
            paths[row.name] = path
    return Built(paths, tuple(missing))


def absent(name: str, reason: str) -> Line:
    """The line of a model that there is none of."""
    return Line(f"{name}: not measured, {reason.replace('|', '/')}", {})


def speeds(
    paths: Mapping[str, Path], feeds: Mapping[str, Feeds], spec: SessionSpec, rounds: int
) -> dict[str, Speeds]:
    """By model; the bases' are those of the first group.

    Args:
        paths: the models by name, the bases among them.
        feeds: what they are timed on, by the name of the inputs.
        spec: how they are run.
        rounds: how often.
    """
    found: dict[str, Speeds] = {}
    for names in groups(paths):
        _log.info("timing %s", ", ".join(names))
        group = [paths[name] for name in names]
        times = {inputs: time_models(group, given, spec, rounds) for inputs, given in feeds.items()}
        found = {**speeds_of(times, names), **found}
    return found


def speedups(
    makes: Mapping[str, Make], feeds: Mapping[str, Feeds], spec: SessionSpec, rounds: int
) -> dict[str, Speed]:
    """What ``optimize`` chooses forms by: the speed of each model over the first, at all inputs."""

    def write(make: Make, path: Path) -> None:
        model = make()
        UnfuseNormsPass()(model)
        save_model(model, path)

    with TemporaryDirectory() as folder:
        rows = [Row(name, partial(write, make)) for name, make in makes.items()]
        paths = build(rows, Path(folder)).paths
        times = np.stack(
            [time_models(list(paths.values()), given, spec, rounds) for given in feeds.values()]
        )  # [shapes, rounds, models]
    rng, pairs = np.random.default_rng(0), [times[..., [0, index]] for index in range(len(paths))]
    found = [Speed(speedup(pair), *speedup_interval(pair, rng)) for pair in pairs]
    return dict(zip(paths, found, strict=True))


def groups(paths: Mapping[str, Path]) -> Iterator[list[str]]:
    """The names of the models that run in turn: the bases, and at most so many bytes of others."""
    bases = [name for name in BASES if name in paths]
    group: list[str] = []
    taken_bytes = 0
    for name, path in paths.items():
        if name in bases:
            continue
        if group and taken_bytes + file_bytes(path) > GROUP_BYTES:
            yield [*bases, *group]
            group, taken_bytes = [], 0
        group.append(name)
        taken_bytes += file_bytes(path)
    yield [*bases, *group]


def file_bytes(path: Path) -> int:
    """The size of a model, its external data included."""
    return model_size(path, path).candidate_bytes


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


def speeds_of(times: Mapping[str, Times], names: Sequence[str]) -> dict[str, Speeds]:
    """By model, of those that took turns; ``times`` are by inputs."""
    found: dict[str, Speeds] = {name: {} for name in names}
    for inputs, measured in times.items():
        for name, base, text in ratios(measured, names):
            found[name][base, inputs] = text
    return found


def accuracy(subject: Subject, path: Path) -> dict[str, str]:
    """Held-out cosine, that of each domain, batch invariance and size of one model."""
    settings = subject.learned.settings

    def cosine(samples: Samples) -> float:
        report = validate(
            subject.original,
            path,
            samples,
            metric=subject.metric,
            spec=settings.session,
            batch_size=settings.batch_size,
        )
        return report.metrics.get("cosine", min(row.cosine or 0 for row in report.outputs))

    alike = batch_invariance(path, subject.held_out, settings.session)
    domains = {name: f"{cosine(samples):.4f}" for name, samples in subject.domains.items()}
    return accuracy_cells(cosine(subject.held_out), alike, file_bytes(path)) | domains


def retrieval(subject: Subject, path: Path) -> dict[str, str]:
    """How well one model finds the sentences of one topic, and what the original finds more."""
    assert subject.labelled is not None
    pooled = subject.metric
    assert isinstance(pooled, EmbeddingMetric)
    settings = subject.learned.settings
    spec = RetrievalMetric(kind="retrieval", output=pooled.output, pooling=pooled.pooling)
    found = validate(
        subject.original,
        path,
        subject.labelled,
        metric=spec,
        spec=settings.session,
        batch_size=settings.batch_size,
    ).metrics
    cells = {}
    for score, name in (("ndcg", "nDCG"), ("recall", "recall")):
        drop, low, high = (found[f"{score}_drop{end}"] for end in ("", "_low", "_high"))
        cells[f"{name}@{spec.top_k}"] = f"{found[score]:.4f}"
        cells[f"{name} lost"] = f"{drop:.4f} [{low:.4f}, {high:.4f}]"
    return cells


def render_retrieval(lines: Sequence[Line]) -> Iterator[str]:
    """Markdown: a table of :func:`retrieval`'s figures."""
    yield from ("", "Sentences of the same topic found:", "")
    yield from _table(lines, list(lines[0].figures), (), ORIGINAL)


def accuracy_cells(cosine: float, in_a_batch: float, size_bytes: int) -> dict[str, str]:
    """The figures of a model whose accuracy is measured."""
    return {
        "cosine": f"{cosine:.4f}",
        "in a batch": f"{in_a_batch:.5f}",
        "file": formats.size(size_bytes),
    }


def memory(path: Path, feeds: Feeds, spec: SessionSpec) -> dict[str, str]:
    """Size, and what a process of its own takes more once it has run the model."""
    data = path.with_name("memory.npz")
    save_feeds(feeds, data)
    _, grown_bytes = in_fresh_process(path, data, spec)
    data.unlink()
    return {
        "file": formats.size(file_bytes(path)),
        "memory": formats.size(int(grown_bytes)),
    }


def render(lines: Sequence[Line], figures: Sequence[str], inputs: Sequence[str]) -> Iterator[str]:
    """Markdown: a table over the original with all figures, then one over dynamic int8."""
    yield from (f"Over the {ORIGINAL}:", "")
    yield from _table(lines, figures, inputs, ORIGINAL)
    others = [line for line in lines if line.name != DYNAMIC and _has(line, DYNAMIC)]
    if others:
        yield from ("", f"Over {DYNAMIC}:", "")
        yield from _table(others, (), inputs, DYNAMIC)


def _has(line: Line, base: str) -> bool:
    return any(over == base for over, _ in line.speeds)


def _table(
    lines: Iterable[Line], figures: Sequence[str], inputs: Sequence[str], base: str
) -> Iterator[str]:
    yield f"| {' | '.join(['', *figures, *inputs])} |"
    yield f"|:---|{'---:|' * (len(figures) + len(inputs))}"
    for line in lines:
        cells = [line.figures.get(name, formats.MISSING) for name in figures]
        cells += [line.speeds.get((base, name), formats.MISSING) for name in inputs]
        yield f"| {' | '.join([line.name, *cells])} |"
