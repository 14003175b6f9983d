"""``python -m studies.performance [MODEL DATA] [--rivals]``, or with ``--shapes [NAME ...]``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from compress_onnx.pipeline.measure.latency import benchmark_feeds
from compress_onnx.pipeline.recipe import BenchmarkSpec
from compress_onnx.pipeline.runtime.environment import environment
from compress_onnx.pipeline.runtime.session import SessionSpec
from compress_onnx.pipeline.runtime.threads import limited
from studies.performance import shapes
from studies.performance.rivals.rows import openvino_lines, pruned_rows
from studies.performance.rows import DYNAMIC, ORIGINAL, rows
from studies.performance.subject import Subject, by_files, by_recipe
from studies.performance.table import (
    Feeds,
    Line,
    accuracy,
    build,
    render,
    speeds_of,
    time_models,
)

SIZES = (1, 16), (1, 128), (8, 128)
FIGURES = "cosine", "in a batch", "file"


def timed_feeds(subject: Subject) -> dict[str, Feeds]:
    """The inputs that models are timed on, by batch and tokens."""
    material = subject.material
    return {
        f"{batch}×{length}": benchmark_feeds(
            material.original.path,
            BenchmarkSpec(batch=batch, length=length),
            samples=material.samples,
            seed=0,
        )
        for batch, length in SIZES
    }


def table(
    subject: Subject,
    folder: Path,
    rounds: int,
    *,
    rivals: bool = False,
    only: Collection[str] = (),
) -> Iterator[str]:
    """The lines of the table of one model; ``only`` names rows, all without."""
    material = subject.material
    wanted = [*rows(material), *(pruned_rows(material, folder) if rivals else ())]
    wanted = [row for row in wanted if not only or row.name in {ORIGINAL, DYNAMIC, *only}]
    built = build(wanted, folder, material.settings.progress)
    feeds, spec = timed_feeds(subject), SessionSpec()
    paths = list(built.paths.values())
    times = {name: time_models(paths, given, spec, rounds) for name, given in feeds.items()}
    speeds = speeds_of(times, list(built.paths))
    lines = [Line(n, accuracy(subject, p), speeds[n]) for n, p in built.paths.items()]
    if rivals:
        lines += openvino_lines(subject, built.paths, feeds, folder=folder, rounds=rounds)
    yield from render([*lines, *built.missing], FIGURES, list(feeds))


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--rivals", action="store_true", help="tools with their own environments")
    parser.add_argument("--shapes", nargs="*", choices=[*shapes.SHAPES], help="full size")
    parser.add_argument("--only", nargs="+", default=(), help="these rows, beside the two bases")
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    if (given.model is None) != (given.data is None):
        parser.error("give both, a model and its data, or none")
    # ONNX Runtime's quantizers set up logging of their own when they are imported.
    logging.basicConfig(level=logging.WARNING, force=True)
    with limited():
        if given.shapes is not None:
            for name in given.shapes or shapes.SHAPES:
                with TemporaryDirectory() as folder:
                    _print(
                        [
                            "",
                            name,
                            "",
                            *shapes.table(shapes.SHAPES[name], Path(folder), given.rounds),
                        ]
                    )
        else:
            with TemporaryDirectory() as folder:
                export = Path(folder) / "export"
                export.mkdir()
                subject = by_files(given.model, given.data) if given.model else by_recipe(export)
                rivals, only = given.rivals, given.only
                _print(table(subject, Path(folder), given.rounds, rivals=rivals, only=only))
    found = environment()
    sets = ", ".join(found.instruction_sets)
    _print(["", f"{found.processor} ({sets}), {found.cores} cores, {given.rounds} rounds"])


def _print(lines: Iterator[str] | list[str]) -> None:
    for line in lines:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
