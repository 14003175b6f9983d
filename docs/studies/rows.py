"""How many rows are enough: ``python -m studies.rows PAGE``.

MiniLM at half of its linear parameters, learned from rising parts of its calibration sentences,
drawn at random. Everything that is learned (moments, gradients, repair) is of that part alone; the
cosine to the original is of held-out sentences. The time is that of learning and compressing.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from compress_onnx.graph_passes.planning.request import CompressionSpec, FFNPolicy
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.files.atomic import atomic_file
from compress_onnx.pipeline.measure.validate import validate
from compress_onnx.pipeline.recipes.single import ModelExperiment, requested
from compress_onnx.pipeline.runtime.threads import limited
from studies.performance.subject import prepared

RECIPE = Path("models/minilm-lowrank.yaml")
PARTS = (1 / 8, 1 / 4, 1 / 2, 1.0)
STRUCTURES: dict[str, FFNPolicy] = {"low rank": "factor", "neurons and low rank": "neurons"}
SHARE = 0.5

logger = logging.getLogger(__name__)


class Row(NamedTuple):
    """What came of so many sentences: cosine and seconds by structure."""

    sentences: int
    rows: int
    found: dict[str, tuple[float, float]]


def measured(experiment: ModelExperiment, folder: Path) -> Iterator[Row]:
    """Each part of the sentences."""
    samples, held_out = experiment.learned.samples, experiment.held_out
    assert samples is not None
    assert held_out is not None
    order = np.random.default_rng(0).permutation(len(samples))
    candidate = folder / "candidate.onnx"
    for part in PARTS:
        drawn = samples.select(np.sort(order[: round(part * len(samples))]))
        found = {}
        for structure, ffns in STRUCTURES.items():
            begun = time.perf_counter()
            learned = learn(experiment.reference, drawn, replace(experiment.settings, cache=None))
            request = CompressionSpec(params=SHARE, ffns=ffns)
            learned.compress(requested(request, experiment.recipe.metric)).write(candidate)
            seconds = time.perf_counter() - begun
            report = validate(
                experiment.reference, candidate, held_out, metric=experiment.recipe.metric
            )
            found[structure] = report.metrics["cosine"], seconds
        rows = max(stats.count for stats in learned.stats.values())
        yield Row(len(drawn), rows, found)
        logger.info("%d sentences: %s", len(drawn), found)


def page(rows: list[Row]) -> Iterator[str]:
    """The page."""
    yield "# How many rows are enough"
    yield ""
    yield (
        "Written by `make rows`: all-MiniLM-L6-v2 at half of its linear parameters, learned from "
        "parts of its calibration sentences. Rows are the inputs of a layer, one a token. The "
        "widest layer reads 1,536 values."
    )
    yield ""
    yield f"| sentences | rows | {' | '.join(f'{s}: cosine | s' for s in STRUCTURES)} |"
    yield f"|---:|---:|{'---:|' * 2 * len(STRUCTURES)}"
    for row in rows:
        cells = (f"{cosine:.4f} | {seconds:.0f}" for cosine, seconds in row.found.values())
        yield f"| {row.sentences:,} | {row.rows:,} | {' | '.join(cells)} |"


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    output = parser.parse_args().page
    logging.basicConfig(level=logging.WARNING)
    logger.setLevel(logging.INFO)
    with limited(), TemporaryDirectory(prefix="compress-onnx-") as work:
        folder = Path(work)
        (folder / "export").mkdir()
        rows = list(measured(prepared(folder / "export", RECIPE), folder))
    with atomic_file(output) as temporary:
        temporary.write_text("\n".join(page(rows)) + "\n")


if __name__ == "__main__":
    main()
