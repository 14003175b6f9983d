"""Time and memory of learning a model: ``python -m studies.scale [--shapes]``.

A child process learns the model on its samples with an empty cache and compresses it by ``auto`` to
half of the linear parameters, then to 40 %; a second one does the first again with the cache that
the first one left. Every step has its time and the peak of the resident memory while it runs
(Linux: the kernel's own peak, reset in front of each step). Writes the tables into docs/scale.md.

Every fifth sample is held out for the cosine of pooled outputs, which says that what was saved cost
no accuracy. A shape has random weights, and no accuracy: only its first compression is measured.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.compress.holdout import hold_out, metric_for
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.data.feeds import as_samples
from compress_onnx.pipeline.data.sources import load_samples
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.export import export
from compress_onnx.pipeline.files.cache import ArrayCache, default_folder
from compress_onnx.pipeline.files.model_file import data_files, load_model
from compress_onnx.pipeline.measure.validate import validate
from compress_onnx.pipeline.recipe import read_recipe
from compress_onnx.pipeline.runtime.environment import environment
from compress_onnx.pipeline.runtime.inputs import load_structure, model_inputs
from compress_onnx.pipeline.runtime.progress import Update
from compress_onnx.pipeline.runtime.threads import available_cores, limited
from studies.performance.shapes import SHAPES, exported, made_up

PAGE = Path("docs/scale.md")
BEGIN, END = "<!-- time and memory: make scale -->", "<!-- end of time and memory -->"
RECIPES = {
    "all-MiniLM-L6-v2": (Path("models/minilm-lowrank.yaml"), {}),
    "all-mpnet-base-v2": (Path("models/mpnet.yaml"), {"limit": 1280, "max_tokens": 24}),
}
"""Sentence encoders, with what is changed of their calibration data.

Four fifths of mpnet's are 1,024 short sentences, about 21,000 tokens."""
SHARES = 0.5, 0.4
LARGE = {"bert-large": (SHAPES["bert-large"], 256, 128)}
"""Shapes of random weights, by name, with how many made-up sentences of how many tokens."""
WORK = {"all-mpnet-base-v2": (12, 768, 1024 * 24), "bert-large": (24, 1024, 256 * 128)}
"""Layers, width and positions."""

PRODUCTS = {
    "calibrate": (24, 19),
    "differentiate": (24 + 24, 42),
    "factor in sequence": (24 + 12, 3 * 19),
}
"""FLOPs of a layer and position in H²: running the layers, there and back, and summing up moments.

A layer has 12·H² parameters; inputs' covariances are 19·H² numbers, moments of gradients 42·H², and
half of a symmetric matrix is computed; in sequence, covariances are of two models' inputs.
"""
OPENED, ELSE = "open", "all else"

logger = logging.getLogger(__name__)


class Step(NamedTuple):
    """What a part of the work took."""

    name: str
    seconds: float
    peak_bytes: int


class Run(NamedTuple):
    """What a process took.

    Attributes:
        steps: in order; all else is the last.
        again_s: another share from what was learned; None of random weights, where that takes as
            long and says no more.
        written_bytes: of the compressed model.
        cosine: of pooled outputs on held-out samples; None without any.
    """

    steps: Sequence[Step]
    again_s: float | None
    written_bytes: int
    cosine: float | None

    @property
    def seconds(self) -> float:
        """Until the first model was written."""
        return sum(step.seconds for step in self.steps)

    @property
    def peak_bytes(self) -> int:
        """Of all steps."""
        return max(step.peak_bytes for step in self.steps)


class Watch:
    """A progress that measures the time and the peak memory of each step."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._begun = time.perf_counter()
        self._between_bytes = 0
        taken_peak()  # What was before does not count.

    @contextmanager
    def step(self, description: str, total: int | None = None) -> Iterator[Update]:  # noqa: ARG002
        """Measure a step; none is inside another."""
        self._between_bytes = max(self._between_bytes, taken_peak())
        begun = time.perf_counter()
        yield lambda _done: None
        self.steps.append(Step(description, time.perf_counter() - begun, taken_peak()))

    def result(self) -> list[Step]:
        """The steps so far, and all that was between them."""
        between_s = time.perf_counter() - self._begun - sum(step.seconds for step in self.steps)
        peak = max(self._between_bytes, taken_peak())
        return [*self.steps, Step(ELSE, between_s, peak)]


def taken_peak() -> int:
    """The peak of the resident memory since this was last called."""
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")
    return 1024 * int(peak.split()[1])


def child(model: Path, data: Path, accuracy: bool) -> Run:
    """Learn and compress as this process's cache allows."""
    watch = Watch()
    samples = as_samples(data, model_inputs(load_structure(model)))
    held_out, metric = None, None
    if accuracy:
        samples, held_out = hold_out(samples)
        metric = metric_for(model, held_out, "pooled")
    settings = RunSettings(cache=ArrayCache(default_folder()), progress=watch)
    objective = "pooled" if metric else "positions"
    requests = [
        CompressionSpec(method=MethodSpec(name="auto"), params=share, objective=objective)
        for share in SHARES
    ]
    with limited(), TemporaryDirectory() as folder:
        learned = learn(model, samples, settings)
        path = Path(folder) / "half.onnx"
        learned.compress(requests[0]).write(path)
        steps = watch.result()
        if held_out is None or metric is None:
            return Run(steps, None, file_bytes(path), None)
        begun = time.perf_counter()
        learned.compress(requests[1]).write(Path(folder) / "less.onnx")
        again_s = time.perf_counter() - begun
        cosine = validate(model, path, held_out, metric=metric).metrics["cosine"]
        return Run(steps, again_s, file_bytes(path), cosine)


def in_child(model: Path, data: Path, cache: Path, *, accuracy: bool) -> Run:
    """What :func:`child` measures, in a process of its own."""
    command = [sys.executable, "-m", "studies.scale", "--child", str(model), str(data)]
    command += ["--accuracy"] if accuracy else []
    variables = {"COMPRESS_ONNX_CACHE": str(cache), "COMPRESS_ONNX_CACHE_LIMIT": "100GB"}
    done = subprocess.run(  # noqa: S603  # our own interpreter and code
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | variables
    )
    steps, *rest = json.loads(done.stdout)
    return Run([Step(*step) for step in steps], *rest)


def file_bytes(model: Path) -> int:
    """Of the model's file and those of its weights."""
    return sum(file.stat().st_size for file in (model, *data_files(load_model(model))))


def table(title: str, model: Path, data: Path, *, accuracy: bool) -> Iterator[str]:
    """The lines of the table of one model."""
    size = file_bytes(model)
    with TemporaryDirectory(prefix="compress-onnx-scale-") as folder:
        cache = Path(folder)
        first = in_child(model, data, cache, accuracy=accuracy)
        kept = sum(file.stat().st_size for file in cache.iterdir())
        second = in_child(model, data, cache, accuracy=accuracy) if accuracy else None

    def row(name: str, seconds: float, amount: float | None = None) -> str:
        cells = ["", ""] if amount is None else [f"{amount / 1e9:.2f}", f"{amount / size:.2f}"]
        return f"| {name} | {seconds:.0f} | {' | '.join(cells)} |"

    yield f"**{title}**, {size / 1e6:.0f} MB, {np.load(data)['input_ids'].shape} tokens:"
    yield ""
    yield "| | time s | peak memory GB | of the file |"
    yield "|:---|---:|---:|---:|"
    for step in first.steps:
        yield row(step.name, step.seconds, step.peak_bytes)
    yield row("**all**", first.seconds, first.peak_bytes)
    if first.again_s is not None:
        yield row("another share, same process", first.again_s)
    if second is not None:
        yield row("the same, from the cache", second.seconds, second.peak_bytes)
    yield ""
    accurate = "" if first.cosine is None else f" Cosine on held-out samples {first.cosine:.4f}."
    yield (
        f"Cache {kept / 1e6:.0f} MB, {kept / size:.2f} of the file; the result "
        f"{first.written_bytes / 1e6:.0f} MB.{accurate}"
    )
    yield ""


def least_times() -> Iterator[str]:
    """The lines of a table: what the products alone take at this machine's speed in float32."""
    speed = product_speed()
    yield f"Products of float32 run at {speed / 1e9:.0f} GFLOP/s here."
    yield ""
    yield f"| | {' | '.join(f'{step}, TFLOP' for step in PRODUCTS)} | all | least time s |"
    yield f"|:---|{'---:|' * (len(PRODUCTS) + 2)}"
    for name, (layers, width, positions) in WORK.items():
        unit = layers * width**2 * positions
        found = [unit * sum(parts) for parts in PRODUCTS.values()]
        cells = [f"{flops / 1e12:.1f}" for flops in (*found, sum(found))]
        yield f"| {name} | {' | '.join(cells)} | {sum(found) / speed:.0f} |"
    yield ""


def product_speed(size: int = 3072, rounds: int = 8) -> float:
    """FLOPs a second of products of float32 matrices, the best of some rounds."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((size, size), np.float32) for _ in range(2))
    seconds = []
    for _ in range(rounds):
        begun = time.perf_counter()
        np.matmul(a, b)
        seconds.append(time.perf_counter() - begun)
    return 2 * size**3 / min(seconds)


def encoder(title: str, folder: Path) -> tuple[Path, Path]:
    """A recipe's sentence encoder and its calibration sentences."""
    path, changes = RECIPES[title]
    recipe = read_recipe(path)
    assert recipe.calibration is not None
    made = export(recipe.source, folder, base_dir=path.parent)
    declared = model_inputs(load_structure(made.path))
    samples = load_samples(
        recipe.calibration.model_copy(update=changes),
        base_dir=path.parent,
        tokenizer_dir=made.tokenizer_dir,
        mask=recipe.mask,
        input_names=[value.name for value in declared],
        allow_code=True,
        declared=declared,
    )
    data = folder / "samples.npz"
    np.savez(data, **samples.inputs)  # type: ignore[arg-type]  # the stub wants bool for a keyword
    return made.path, data


def large(name: str, folder: Path) -> tuple[Path, Path]:
    """A large shape of random weights, and made-up sentences of full length."""
    shape, samples, tokens = LARGE[name]
    path, data = exported(shape, folder), folder / "samples.npz"
    np.savez(data, **made_up(path, samples, tokens))  # type: ignore[arg-type]
    return path, data


def write_between_marks(lines: Sequence[str]) -> None:
    """Put ``lines`` into their place of the page; the rest of it stays."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    text = "\n".join(lines)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Measure the encoders, and large shapes on request."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="*", choices=[*LARGE], help="of random weights")
    parser.add_argument("--recipes", nargs="*", choices=[*RECIPES], default=[*RECIPES])
    parser.add_argument("--write", action="store_true", help=f"into {PAGE}")
    parser.add_argument("--child", type=Path, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--accuracy", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        model, data = arguments.child
        print(json.dumps(child(model, data, arguments.accuracy)))
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    lines = [f"{available_cores()} cores; {environment().processor}.", "", *least_times()]
    for title in arguments.recipes:
        with TemporaryDirectory(prefix="compress-onnx-") as work:
            lines += table(title, *encoder(title, Path(work)), accuracy=True)
    for name in () if arguments.shapes is None else arguments.shapes or LARGE:
        with TemporaryDirectory(prefix="compress-onnx-") as work:
            lines += table(f"{name}, random weights", *large(name, Path(work)), accuracy=False)
    logger.info("%s", "\n".join(lines))
    if arguments.write:
        write_between_marks(lines)


if __name__ == "__main__":
    main()
