"""``python -m studies.performance [--recipe RECIPE | MODEL DATA]``, or ``--shapes [NAME ...]``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.pipeline.compress.form_times import Speedups
from compress_onnx.pipeline.measure.latency import benchmark_feeds
from compress_onnx.pipeline.recipe import BenchmarkSpec
from compress_onnx.pipeline.runtime.environment import environment
from compress_onnx.pipeline.runtime.session import SessionSpec
from compress_onnx.pipeline.runtime.threads import limited
from studies.performance import shapes
from studies.performance.rivals.rows import COMPILED, openvino_lines, pruned_rows
from studies.performance.rows import Row, calibrated, compiled, ours, recovered, theirs
from studies.performance.subject import MINILM, Subject, by_files, by_recipe
from studies.performance.table import (
    BASES,
    Feeds,
    Line,
    accuracy,
    build,
    render,
    render_retrieval,
    retrieval,
    speeds,
    speedups,
)

SIZES = (1, 16), (1, 128), (8, 128)


def timed_feeds(subject: Subject) -> dict[str, Feeds]:
    """The inputs that models are timed on, by batch and tokens."""
    return {
        f"{batch}×{length}": benchmark_feeds(
            subject.original,
            BenchmarkSpec(batch=batch, length=length),
            samples=subject.samples,
            seed=0,
        )
        for batch, length in SIZES
    }


def rows(
    subject: Subject, folder: Path, chosen_by: Speedups, *, rivals: bool, recovery_s: float = 0.0
) -> Iterator[Row]:
    """All models that ONNX Runtime runs.

    Args:
        subject: what they are made of.
        folder: for files in between.
        chosen_by: times the models that forms of ours are chosen by.
        rivals: whether those with an environment of their own are among them.
        recovery_s: how long models are trained; none is where that is 0.
    """
    yield from theirs(subject.learned.original)
    yield calibrated(subject.learned.original, subject.samples)
    if rivals:
        yield from pruned_rows(subject, folder)
    yield from ours(subject.learned, chosen_by)
    if recovery_s:
        yield from recovered(subject.learned, chosen_by, recovery_s, subject.lessons)


def table(
    subject: Subject,
    folder: Path,
    rounds: int,
    *,
    rivals: bool = False,
    recovery_s: float = 0.0,
    only: Collection[str] = (),
) -> Iterator[str]:
    """The lines of the tables of one model; ``only`` names rows, all without.

    Raises:
        RequestError: there is no row of such a name.
    """
    feeds, spec = timed_feeds(subject), SessionSpec()
    chosen_by = partial(speedups, feeds=feeds, spec=spec, rounds=rounds)
    wanted = list(rows(subject, folder, chosen_by, rivals=rivals, recovery_s=recovery_s))
    names = [row.name for row in wanted] + ([COMPILED] if rivals else [])
    if unknown := set(only) - set(names):
        raise RequestError(f"no row is called {min(unknown)}; there are: {', '.join(names)}")
    wanted = [row for row in wanted if not only or row.name in {*BASES, *only}]
    built = build(wanted, folder)
    fast = speeds(built.paths, feeds, spec, rounds)
    lines = [Line(n, accuracy(subject, p), fast[n]) for n, p in built.paths.items()]
    if rivals and (not only or COMPILED in only):
        in_openvino = folder / "openvino"
        in_openvino.mkdir()
        forms = build(compiled(subject.learned), in_openvino).paths
        lines += openvino_lines(
            subject, built.paths, forms, feeds, folder=in_openvino, rounds=rounds
        )
    figures = ["cosine", *subject.domains, "in a batch", "file"]
    yield from render([*lines, *built.missing], figures, list(feeds))
    if subject.labelled is not None:
        yield from render_retrieval(
            [Line(n, retrieval(subject, p)) for n, p in built.paths.items()]
        )


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--recipe", type=Path, default=MINILM, help="a sentence encoder's")
    parser.add_argument("--topics", metavar="PATH.py:FUNCTION", help="a recipe's labelled texts")
    parser.add_argument("--rivals", action="store_true", help="tools with their own environments")
    parser.add_argument("--shapes", nargs="*", choices=[*shapes.SHAPES], help="full size")
    parser.add_argument(
        "--recover", type=float, default=0.0, metavar="SECONDS", help="train models for so long"
    )
    parser.add_argument("--only", nargs="+", default=(), help="these rows, beside the two bases")
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    if (given.model is None) != (given.data is None):
        parser.error("give both, a model and its data, or none")
    # ONNX Runtime's quantizers set up logging of their own when they are imported.
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    logging.getLogger("studies").setLevel(logging.INFO)
    with limited():
        if given.shapes is not None:
            for name in given.shapes or shapes.SHAPES:
                with TemporaryDirectory() as folder:
                    _print(["", f"## {name}", ""])
                    _print(shapes.table(shapes.SHAPES[name], Path(folder), given.rounds))
        else:
            with TemporaryDirectory() as folder:
                export = Path(folder) / "export"
                export.mkdir()
                subject = (
                    by_files(given.model, given.data)
                    if given.model
                    else by_recipe(export, given.recipe, given.topics)
                )
                lines = table(
                    subject,
                    Path(folder),
                    given.rounds,
                    rivals=given.rivals,
                    recovery_s=given.recover,
                    only=given.only,
                )
                _print(lines)
    found = environment()
    sets = ", ".join(found.instruction_sets)
    _print(["", f"{found.processor} ({sets}), {found.cores} cores, {given.rounds} rounds."])


def _print(lines: Iterator[str] | list[str]) -> None:
    for line in lines:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
