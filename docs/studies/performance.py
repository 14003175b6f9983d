"""Ours beside what a user has without us: ``python -m studies.performance [MODEL.onnx DATA.npz]``.

Without a model, MiniLM by its recipe. Prints one table as docs/performance.md has them: each row a
model that ONNX Runtime's own tools make, or that this project does; accuracy on held-out samples
that chose nothing, the least cosine of a sample alone to itself in a batch, the file, and the speed
over the original at three sizes, all rows interleaved in one run.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.rewriting.unfused_norms import UnfuseNormsPass
from compress_onnx.pipeline.compress.holdout import hold_out, metric_for
from compress_onnx.pipeline.compress.integers import round_model
from compress_onnx.pipeline.compress.learn import Learned, learn
from compress_onnx.pipeline.compress.rivals import RIVALS
from compress_onnx.pipeline.data.feeds import as_samples
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.cache import ArrayCache, default_folder
from compress_onnx.pipeline.files.model_file import model_size, save_model
from compress_onnx.pipeline.measure.batch_invariance import batch_invariance
from compress_onnx.pipeline.measure.benchmark import (
    BoundModel,
    interleave,
    speedup,
    speedup_interval,
)
from compress_onnx.pipeline.measure.latency import benchmark_feeds
from compress_onnx.pipeline.measure.validate import validate
from compress_onnx.pipeline.recipe import BenchmarkSpec, MetricSpec, read_recipe
from compress_onnx.pipeline.recipes.experiment import settings_of
from compress_onnx.pipeline.recipes.single import prepare_model
from compress_onnx.pipeline.report import formats
from compress_onnx.pipeline.runtime.environment import environment
from compress_onnx.pipeline.runtime.inputs import load_structure, model_inputs
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import SessionSpec
from compress_onnx.pipeline.runtime.threads import limited

SIZES = (1, 16), (1, 128), (8, 128)
ROUNDS, WARMUP = 30, 5
SHARES = 0.75, 0.5
"""Of the parameters of feed-forward networks."""

Build = Callable[[Path], None]


class Subject(NamedTuple):
    """A model, what is known about it, and what it is held against."""

    learned: Learned
    held_out: Samples
    metric: MetricSpec | None


def builds(learned: Learned) -> Iterator[tuple[str, Build]]:
    """The rows of a table, and what writes each model."""
    original = learned.original
    yield "original", lambda path: save_model(original.copy(), path)
    for name, write in RIVALS.items():
        yield name, partial(write, original.path)
    yield "original, sums and norms apart", partial(_save, original.copy())
    yield "integers", lambda path: _save_rounded(learned, original.copy(), path)
    for share in SHARES:
        request = CompressionSpec(method=MethodSpec(name="neurons"), params=share, sequential=False)
        fewer = f"{share:.0%} of the neurons"
        yield fewer, lambda path, r=request: _save(learned.compress(r).model, path)  # type: ignore[misc]
        yield (
            f"{fewer}, integers",
            lambda path, r=request: _save_rounded(learned, learned.compress(r).model, path),  # type: ignore[misc]
        )


def _save_rounded(learned: Learned, model: ir.Model, path: Path) -> None:
    assert learned.samples is not None
    rounded = round_model(model, learned.samples, learned.settings)
    _save(rounded.model, path)


def _save(model: ir.Model, path: Path) -> None:
    UnfuseNormsPass()(model)
    save_model(model, path)


def table(subject: Subject, folder: Path) -> Iterator[str]:
    """The lines of a table."""
    learned, settings = subject.learned, subject.learned.settings
    names: list[str] = []
    paths: list[Path] = []
    for name, build in builds(learned):
        path = folder / f"{len(paths)}.onnx"
        with settings.progress.step(f"build {name}"):
            build(path)
        names.append(name)
        paths.append(path)
    speeds = [_speeds(learned, paths, batch, length) for batch, length in SIZES]
    header = ["", "cosine", "in a batch", "file", *(f"{b}×{n}" for b, n in SIZES)]
    yield f"| {' | '.join(header)} |"
    yield f"|:---|{'---:|' * (len(header) - 1)}"
    for index, (name, path) in enumerate(zip(names, paths, strict=True)):
        report = validate(
            learned.original.path,
            path,
            subject.held_out,
            metric=subject.metric,
            spec=settings.session,
            batch_size=settings.batch_size,
        )
        accuracy = report.metrics.get("cosine", min(row.cosine or 0 for row in report.outputs))
        cells = [
            name,
            f"{accuracy:.4f}",
            f"{batch_invariance(path, subject.held_out, settings.session):.5f}",
            formats.size(model_size(path, path).candidate_bytes),
            *(column[index] for column in speeds),
        ]
        yield f"| {' | '.join(cells)} |"


def _speeds(learned: Learned, paths: list[Path], batch: int, length: int) -> list[str]:
    """The speed of each model over the first, with its interval."""
    spec = BenchmarkSpec(batch=batch, length=length)
    feeds = benchmark_feeds(learned.original.path, spec, samples=learned.samples, seed=0)
    models = [BoundModel(path, feeds, SessionSpec()) for path in paths]
    rng = np.random.default_rng(0)
    interleave(models, WARMUP, rng)
    times = interleave(models, ROUNDS, rng)
    found = []
    for index in range(len(paths)):
        pair = times[:, [0, index]]
        interval = speedup_interval(pair, rng)
        found.append(f"{speedup(pair):.2f} [{interval.low:.2f}, {interval.high:.2f}]")
    return found


def by_recipe(folder: Path) -> Subject:
    """MiniLM, its calibration sentences, and those that it was never calibrated on."""
    recipe = read_recipe(Path("models/minilm-lowrank.yaml"))
    cache = ArrayCache(default_folder())
    settings = settings_of(recipe, RunSettings(cache=cache, allow_code=True))
    prepared = prepare_model(recipe, folder, base_dir=Path("models"), settings=settings)
    assert prepared.held_out is not None
    return Subject(prepared.learned, prepared.held_out, recipe.metric)


def by_files(model: Path, data: Path) -> Subject:
    """A sentence encoder and its samples, of which every fifth is held out."""
    samples, held_out = hold_out(as_samples(data, model_inputs(load_structure(model))))
    learned = learn(model, samples, RunSettings(cache=ArrayCache(default_folder())))
    return Subject(learned, held_out, metric_for(model, held_out, "pooled"))


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("data", type=Path, nargs="?")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with TemporaryDirectory() as name, limited():
        folder = Path(name)
        (folder / "export").mkdir()
        subject = by_files(given.model, given.data) if given.model else by_recipe(folder / "export")
        for line in table(subject, folder):
            sys.stdout.write(f"{line}\n")
        found = environment()
        sys.stdout.write(f"\n{found.processor}, {found.cores} cores\n")


if __name__ == "__main__":
    main()
