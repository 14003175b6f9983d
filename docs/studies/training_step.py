"""A step of recovery beside one of plain PyTorch: ``python -m studies.training_step PAGE``.

Both train the same architecture, a sentence encoder with half of its neurons, on the same batches,
against the outputs of the original, which are known. Ours is what recovery does: the exported graph
run by PyTorch (:mod:`pipeline.recover.torch_graph`), and Adam in whitened coordinates. The other is
what one would write without us: transformers' own class, ``torch.optim.AdamW``, in single precision
and with autocast to bfloat16. They take turns after each step; the ratio is over whole epochs, with
the spread of these. Weights of the other are random: they decide nothing about the time.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
import transformers

from compress_onnx.pipeline.compress.forms import Forms
from compress_onnx.pipeline.export.source import FolderSource, resolve_source
from compress_onnx.pipeline.files.atomic import atomic_file
from compress_onnx.pipeline.recipe import OptimizeSpec, RecoverySpec
from compress_onnx.pipeline.recover.recover import Lessons, recover_file
from compress_onnx.pipeline.runtime.batches import model_batches
from compress_onnx.pipeline.runtime.environment import environment
from compress_onnx.pipeline.runtime.samples import Batch
from compress_onnx.pipeline.runtime.session import open_session
from compress_onnx.pipeline.runtime.threads import limited
from studies.performance.subject import prepared

RECIPES = {
    "all-MiniLM-L6-v2": Path("models/minilm.yaml"),
    "all-mpnet-base-v2": Path("models/mpnet.yaml"),
}
SHARE = 0.5
BATCHES, BATCH = 10, 32
"""One batch of them is held out by recovery, and is not trained on."""

EPOCHS = 6
"""The first one is not timed: there the original's outputs are computed."""

RATE = 1e-4

logger = logging.getLogger(__name__)


class Times(NamedTuple):
    """Seconds of a step of ours, and of each of the others, step by step."""

    ours: list[float]
    others: Mapping[str, list[float]]

    def ratios(self, name: str) -> list[float]:
        """Of ours over the other's, epoch by epoch."""
        steps = BATCHES - 1
        pairs = list(zip(self.ours, self.others[name], strict=True))
        epochs = [pairs[start : start + steps] for start in range(steps, len(pairs), steps)]
        return [sum(x for x, _ in epoch) / sum(y for _, y in epoch) for epoch in epochs]


def plain_steps(
    folder: Path, batches: Sequence[Batch], *, half: bool
) -> Iterator[Callable[[], None]]:
    """Steps of PyTorch's own on the model whose configuration is in ``folder``."""
    configuration = transformers.AutoConfig.from_pretrained(folder)
    configuration.intermediate_size = int(SHARE * configuration.intermediate_size)
    model = transformers.AutoModel.from_config(configuration).eval()
    encoder = [weight for name, weight in model.named_parameters() if "embedding" not in name]
    for weight in model.parameters():
        weight.requires_grad_(False)
    for weight in encoder:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(encoder, lr=RATE, fused=True)
    width = configuration.hidden_size
    lessons = [
        (
            {name: torch.from_numpy(array) for name, array in batch.feeds.items()},
            torch.randn(*batch.feeds["input_ids"].shape, width),
        )
        for batch in batches
    ]

    def step(feeds: Mapping[str, torch.Tensor], target: torch.Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
            output = model(**feeds).last_hidden_state
        real = feeds["attention_mask"][..., None]
        difference = (output.float() - target) * real
        pooled = difference.sum(dim=1) / real.sum(dim=1)
        (difference.square().mean() + pooled.square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()

    for feeds, target in cycle(lessons):
        yield lambda feeds=feeds, target=target: step(feeds, target)  # type: ignore[misc]


def measured(recipe: Path, folder: Path) -> Times:
    """Both on the encoder of ``recipe``."""
    experiment = prepared(folder, recipe)
    learned = experiment.learned
    assert learned.samples is not None
    samples = learned.samples.take(BATCHES * BATCH)
    source = resolve_source(experiment.recipe.source, recipe.parent)
    assert isinstance(source, FolderSource)
    candidate = folder / "candidate.onnx"
    families = {family.name: family for family in Forms(learned, OptimizeSpec()).families()}
    families["neurons"].build(SHARE, candidate)
    session = open_session(experiment.reference)
    # Recovery holds the sixth batch of ten out.
    batches = [b for i, b in enumerate(model_batches(session, samples, BATCH)) if i != BATCHES // 2]
    others = {
        name: plain_steps(source.folder, batches, half=half)
        for name, half in (("float32", False), ("bfloat16", True))
    }
    times = Times([], {name: [] for name in others})
    begun = time.perf_counter()

    def take_turns(_done: int) -> None:
        nonlocal begun
        times.ours.append(time.perf_counter() - begun)
        for name, steps in others.items():
            step = next(steps)
            begun = time.perf_counter()
            step()
            times.others[name].append(time.perf_counter() - begun)
        begun = time.perf_counter()

    recover_file(
        experiment.reference,
        candidate,
        Lessons(samples),
        # Mixed samples would need the original once more; checks are left to the end.
        RecoverySpec(budget=None, steps=EPOCHS * (BATCHES - 1), mixing=0, learning_rate=RATE),
        batch_size=BATCH,
        progress=take_turns,
    )
    return times


def lines(found: Mapping[str, Times]) -> Iterator[str]:
    """The table."""
    yield "| encoder, half of its neurons | ours, s | PyTorch, s | ours over PyTorch |"
    yield "|:---|---:|---:|---:|"
    for title, times in found.items():
        for name, seconds in times.others.items():
            ratios = times.ratios(name)
            spread = f"{np.mean(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
            ours, theirs = (
                f"{statistics.median(each[BATCHES - 1 :]):.2f}" for each in (times.ours, seconds)
            )
            yield f"| {title}, beside {name} | {ours} | {theirs} | {spread} |"


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    page = parser.parse_args().page
    logging.basicConfig(level=logging.WARNING)
    logger.setLevel(logging.INFO)
    found = {}
    with limited():
        for title, recipe in RECIPES.items():
            with TemporaryDirectory(prefix="compress-onnx-") as folder:
                found[title] = measured(recipe, Path(folder))
                logger.info("%s", "\n".join(lines({title: found[title]})))
    machine = environment()
    text = [
        "# A step of recovery",
        "",
        "Written by `make training-step`: one step on 32 sentences of the calibration data, ours "
        "and PyTorch's in turn, each against outputs that are known; medians, and the ratio over "
        "whole epochs with the least and the largest.",
        "",
        *lines(found),
        "",
        f"{machine.processor} ({', '.join(machine.instruction_sets)}), {machine.cores} cores.",
        "",
    ]
    with atomic_file(page) as temporary:
        temporary.write_text("\n".join(text))


if __name__ == "__main__":
    main()
