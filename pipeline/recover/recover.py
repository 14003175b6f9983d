"""Recovery: train a compressed model until it does what the original does.

The original's own outputs (and values inside, where asked for) on the lessons are the targets;
labels count only where asked for. Held-out batches, never trained on, decide which weights are
kept: one in ten, at most 512 samples, or samples of their own, such as text of another kind.

Rules:

1. Only weights that compression changed (:mod:`graph_passes.rewriting.trainable`), those that will
   be integers (:mod:`pipeline.recover.rounding`) and, where asked for, biases and norm scales
   change; names, shapes and types stay.
2. The result is never worse than the start on the held-out batches: the best weights that were
   measured there win, and where none were better the model stays as it was.
3. Unless it is given, the learning rate is measured: the one at which a first step helps most on
   batches that it does not come from. It is at most one that grows with the distance from the
   original at the start: a model that is nearly right must not be shaken. What labels add to the
   loss of the original itself is no distance. Where the held-out loss does not improve for some
   checks, training goes back to the best weights and on with half the learning rate.
4. Training stops when the budget (seconds, steps, or whichever ends first) is used up, when the
   held-out loss has not improved for a while, or when a loss is not finite.
5. A run that is killed goes on from its last checkpoint when the same recovery is asked for again:
   checkpoints are keyed by both models, the data and the settings. Once the result is in a file,
   its checkpoint goes.
6. With a budget in steps alone, the result depends on nothing but the arguments and the machine.
7. PyTorch computes the gradients (:mod:`pipeline.recover.torch_graph`), on the GPU where the
   provider is CUDA and PyTorch has it; with products of bfloat16 where these are faster.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from compress_onnx.graph_passes.arrays import Array, Float32
from compress_onnx.graph_passes.errors import DataError, RequestError
from compress_onnx.graph_passes.rewriting.canonicalize import CanonicalizePass
from compress_onnx.graph_passes.rewriting.trainable import (
    array_of,
    balanced_factors,
    has_rounded_factors,
    network_weights,
    set_array,
    vectors,
)
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.evidence.shifts import self_contained
from compress_onnx.pipeline.files.cache import ArrayCache, content_key
from compress_onnx.pipeline.files.model_file import (
    content_digest,
    data_files,
    load_model,
    save_model,
    weight_bytes,
)
from compress_onnx.pipeline.recipe import RecoverySpec
from compress_onnx.pipeline.recover.rounding import Rounding
from compress_onnx.pipeline.recover.schedule import scheduled
from compress_onnx.pipeline.recover.teacher import Importance, Teacher
from compress_onnx.pipeline.results import RecoveryReport
from compress_onnx.pipeline.runtime.processor import instruction_sets
from compress_onnx.pipeline.runtime.progress import Progress, Update
from compress_onnx.pipeline.runtime.protobuf import SMALLER, serialized
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import SessionSpec
from compress_onnx.pipeline.runtime.threads import limited

if TYPE_CHECKING:
    from compress_onnx.pipeline.recover.training import Training

TRAINABLE_LIMIT_BYTES = 1_800_000_000
"""What the weights of a model that is trained may take: all of them are inside its gradient graph,
and protobuf holds less than 2 GiB."""

_BFLOAT16 = {"AMX bf16", "bf16"}
"""Instruction sets with which products of bfloat16 are faster. With AVX-512's alone, oneDNN takes
longer than with float32."""

_COMPILED_PRODUCTS = 8192
"""So many does PyTorch keep, unless somebody says otherwise: those of 12 layers, both ways, at 16
lengths. By itself it keeps 1,024."""

_PROGRESS_TOTAL = 1000
_HELD_OUT_EVERY = 10
_MOST_HELD_OUT = 512
"""Samples out of those to train on: each check runs all of them, and more tell little more."""
_CHECKPOINT_EVERY_S = 60.0
_LEAST_STEPS_BETWEEN_CHECKS = 10
_STALE_BEFORE_RETURN = 5
_RATE_AT_DISTANCE_ONE = 0.003
_LEAST_LOSS = 1e-6

logger = logging.getLogger(__name__)


class Lessons(NamedTuple):
    """Unlabelled data for recovery; never those that the result is judged by.

    Attributes:
        samples: to train on.
        held_out: what decides which weights are kept; None holds some batches of ``samples`` out.
    """

    samples: Samples
    held_out: Samples | None = None

    @property
    def inputs(self) -> tuple[Mapping[str, Array], ...]:
        """What decides a recovery, to make keys of."""
        return tuple(each.inputs for each in self if each is not None)


@limited()
def recover(
    reference: Path,
    candidate: ir.Model,
    lessons: Lessons,
    settings: RecoverySpec,
    *,
    data_folder: Path,
    seed: int = 0,
    spec: SessionSpec | None = None,
    batch_size: int = 32,
    rounding: Rounding | None = None,
    checkpoints: ArrayCache | None = None,
    key: str | None = None,
    progress: Update | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> RecoveryReport:
    """Train ``candidate`` in place to reproduce ``reference``.

    Args:
        reference: the original model.
        candidate: what :func:`~pipeline.compress.subject.apply_plan` made of it.
        lessons: what it is trained on, and held against.
        settings: budget, learning rate, what is trained and compared.
        data_folder: where the candidate's external data lies.
        seed: of the order of the batches.
        spec: how the models are run.
        batch_size: samples a step; fewer where that would make fewer than ten batches.
        rounding: how the model will be rounded; it is trained, and measured, as if it were, and
            stays a model of floats.
        checkpoints: where training is kept from a kill; None keeps nothing.
        key: of its checkpoint; None makes it of the other arguments.
        progress: what :func:`recovery_step` yielded.
        clock: seconds, ever growing.

    Raises:
        RequestError: the model has no factors, or is too large; or PyTorch is not installed.
        NotDifferentiableError: it has an operator without gradient; the message names it.
        DataError: the samples do not fit the model, or are too few to hold some out.
    """
    begun = clock()
    device, half = _torch_device(spec or SessionSpec(), settings)
    from compress_onnx.pipeline.recover.distillation import Distillation
    from compress_onnx.pipeline.recover.training import Training
    from compress_onnx.pipeline.recover.whitening import whitenings

    proto = _training_graph(candidate, data_folder)
    rounding = rounding or Rounding()
    how = f"{settings.model_dump_json()} {seed} {batch_size} {rounding}"
    key = key or _key(reference, proto, lessons, how)
    trained = _trained(candidate, settings, rounding)
    start = {value.name or "": array for value, array in trained.items()}
    teacher = _teacher(reference, candidate, settings, spec)
    batches, held_out = _taken(teacher, lessons, batch_size)
    training = Training(
        Distillation(
            proto, list(start), teacher.compared, rounding=rounding, device=device, half=half
        ),
        start,
        teacher=teacher,
        batches=batches,
        held_out=held_out,
        whitening=whitenings(
            candidate,
            trained,
            [teacher.batches[index] for index in batches],
            data_folder,
            spec,
            device=device,
        ),
        mixing=settings.mixing,
        seed=seed,
        device=device,
        half=half,
    )
    course = _Course(training, settings, checkpoints, key, progress, clock, begun)
    stopped = course.run()
    report = RecoveryReport(
        start_loss=training.start_loss,
        end_loss=training.best_loss,
        steps=training.steps,
        seconds=course.elapsed_s,
        learning_rate=course.rate,
        stopped=stopped,
        parameters=sum(array.size for array in start.values()),
        compared=tuple(value.name for value in teacher.compared),
        batches=len(batches),
        held_out_batches=len(held_out),
        device=device,
        products="bfloat16" if half else "float32",
    )
    if report.improved:
        best = training.best
        for value in trained:
            set_array(value, best[value.name or ""])
    return report


def recover_in_memory(
    reference: Path,
    candidate: ir.Model,
    lessons: Lessons,
    recovery: RecoverySpec,
    settings: RunSettings,
    *,
    data_folder: Path,
    rounding: Rounding | None = None,
) -> RecoveryReport:
    """:func:`recover`, run and shown as ``settings`` say.

    Its checkpoint stays, so that the same recovery costs nothing again.
    """
    with recovery_step(settings.progress) as update:
        return recover(
            reference,
            candidate,
            lessons,
            recovery,
            data_folder=data_folder,
            seed=settings.seed,
            spec=settings.session,
            batch_size=settings.batch_size,
            rounding=rounding,
            checkpoints=settings.cache and settings.cache.checkpoints,
            progress=update,
        )


def recover_file(
    reference: Path,
    candidate: Path,
    lessons: Lessons,
    settings: RecoverySpec,
    *,
    seed: int = 0,
    spec: SessionSpec | None = None,
    batch_size: int = 32,
    checkpoints: ArrayCache | None = None,
    progress: Update | None = None,
) -> RecoveryReport:
    """Train the model in the file ``candidate``; it is replaced in one step, if at all.

    Arguments and errors are those of :func:`recover`.
    """
    model = load_model(candidate)
    external = bool(data_files(model))
    how = f"{settings.model_dump_json()} {seed} {batch_size}"
    key = _key(reference, _training_graph(model, candidate.parent), lessons, how)
    report = recover(
        reference,
        model,
        lessons,
        settings,
        data_folder=candidate.parent,
        seed=seed,
        spec=spec,
        batch_size=batch_size,
        checkpoints=checkpoints,
        key=key,
        progress=progress,
    )
    if report.improved:
        save_model(model, candidate, external_data=external)
    if checkpoints is not None:
        checkpoints.remove(key)
    return report


def check_trainable(path: Path) -> None:
    """Refuse early what :func:`recover` would refuse: what is left of a model is not known yet.

    Only the weights of its matrix products get smaller, so the others must fit.

    Raises:
        ModelFileError: there is no such model.
        RequestError: it is too large to be trained, however small its factors.
    """
    model = load_model(path)
    CanonicalizePass()(model)
    sites = {site.weight.initializer for site in find_sites(model).sites}
    compressible = sum(v.const_value.nbytes for v in sites if v.const_value is not None)
    _check_size(weight_bytes(model) - compressible)


def recovery_step(progress: Progress) -> AbstractContextManager[Update]:
    """Begin the step that shows how much of a recovery's budget is used up."""
    return progress.step("recover", _PROGRESS_TOTAL)


@dataclass
class _Course:
    """The loop around a training: budget, learning rate, checks and checkpoints.

    Attributes:
        begun: when recovery began, by ``clock``; earlier by the seconds spent before a kill.
        rate: the largest learning rate (rule 3).
    """

    training: Training
    settings: RecoverySpec
    checkpoints: ArrayCache | None
    key: str
    progress: Update | None
    clock: Callable[[], float]
    begun: float

    def __post_init__(self) -> None:
        state = self.checkpoints.get(self.key) if self.checkpoints is not None else None
        if state is None:
            self.rate = self.settings.learning_rate or self._suitable_rate()
        else:
            self.training.restore(state)
            self.begun -= float(np.asarray(state["elapsed"]))
            self.rate = float(np.asarray(state["rate"]))
        self._saved = self.clock()

    def _suitable_rate(self) -> float:
        excess = self.training.start_loss - self.training.own_loss
        distance = math.sqrt(min(max(excess, _LEAST_LOSS), 1.0))  # the loss is a squared distance
        largest = _RATE_AT_DISTANCE_ONE * distance
        return self.training.suitable_rate(largest) if self.training.finite else largest

    @property
    def _rate_now(self) -> float:
        return self.rate * scheduled(self._done()) * 0.5**self.training.returns

    @property
    def elapsed_s(self) -> float:
        """Seconds of recovery, those before a kill included."""
        return self.clock() - self.begun

    def run(self) -> str:
        """Train until something ends it; returns what."""
        training = self.training
        between = max(_LEAST_STEPS_BETWEEN_CHECKS, training.batches // 2)
        while (reason := self._reason_to_stop()) is None:
            training.step(self._rate_now)
            if training.finite and training.steps % between == 0:
                training.check()
                if training.stale and training.stale % _STALE_BEFORE_RETURN == 0:
                    training.go_back()
                self._save_now_and_then()
            if self.progress is not None:
                self.progress(int(_PROGRESS_TOTAL * min(self._done(), 1.0)))
        if training.finite and training.steps % between:
            training.check()
        self._save()
        return reason

    def _done(self) -> float:
        """The share of the budget that is used up."""
        settings = self.settings
        steps = self.training.steps / settings.steps if settings.steps else 0.0
        seconds = self.elapsed_s / settings.budget if settings.budget else 0.0
        return max(steps, seconds)

    def _reason_to_stop(self) -> str | None:
        if not self.training.finite:
            return "the loss is no longer finite: use a smaller learning rate"
        if self.training.stale >= self.settings.patience:
            return f"{self.settings.patience} checks without an improvement"
        return "the budget is used up" if self._done() >= 1 else None

    def _save_now_and_then(self) -> None:
        if self.clock() - self._saved >= _CHECKPOINT_EVERY_S:
            self._save()
            self._saved = self.clock()

    def _save(self) -> None:
        if self.checkpoints is not None:
            own = {"elapsed": np.array(self.elapsed_s), "rate": np.array(self.rate)}
            self.checkpoints.put(self.key, {**self.training.state(), **own})


def _torch_device(spec: SessionSpec, settings: RecoverySpec) -> tuple[str, bool]:
    """Where PyTorch trains, and whether products of bfloat16 are fast there.

    Raises:
        RequestError: PyTorch is not installed.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_COMPILED_PRODUCTS))
    try:
        import torch
    except ImportError as error:
        raise RequestError(
            "recovery trains with PyTorch, which is not installed: pip install "
            "'compress-onnx[recover]', or leave recovery out"
        ) from error
    torch.set_num_threads(spec.thread_count)
    device = "cuda" if spec.provider == "cuda" and torch.cuda.is_available() else "cpu"
    if spec.provider == "cuda" and device == "cpu":
        logger.warning("this PyTorch has no CUDA: recovery trains on the CPU")
    fast = device == "cuda" or not _BFLOAT16.isdisjoint(instruction_sets())
    return device, fast and settings.products == "auto"


def _trained(
    model: ir.Model, settings: RecoverySpec, rounding: Rounding
) -> dict[ir.Value, Float32]:
    """What is trained, with the numbers to start from."""
    trained = balanced_factors(model)
    for value in (*network_weights(model), *rounding.weights(model)):
        trained.setdefault(value, array_of(value))
    if not trained and has_rounded_factors(model):
        raise RequestError(
            "rounded factors cannot be trained: recover a model whose factors are stored as float32"
        )
    if not trained:
        raise RequestError(
            "there is nothing to recover: no float32 weight of the model was compressed"
        )
    if settings.train == "all":
        for value in vectors(model):
            trained.setdefault(value, array_of(value))
    return trained


def _teacher(
    reference: Path, candidate: ir.Model, settings: RecoverySpec, spec: SessionSpec | None
) -> Teacher:
    original = load_model(reference)
    CanonicalizePass()(original)
    importance = Importance(settings.hidden, settings.pooled, settings.labels)
    return Teacher(original, reference.parent, candidate, importance, spec)


def _taken(
    teacher: Teacher, lessons: Lessons, batch_size: int
) -> tuple[Sequence[int], Sequence[int]]:
    """The numbers of the batches to train on, and of those that are held out."""
    samples = lessons.samples
    numbers = teacher.take(samples, min(batch_size, max(1, len(samples) // _HELD_OUT_EVERY)))
    if lessons.held_out is not None:
        return numbers, teacher.take(lessons.held_out, batch_size)
    if len(numbers) < 2:
        raise DataError("recovery holds a batch out and trains on the others: give more samples")
    every = max(_HELD_OUT_EVERY, -(-len(samples) // _MOST_HELD_OUT))
    held_out = numbers[every // 2 :: every] or numbers[-1:]
    return [index for index in numbers if index not in held_out], held_out


def _training_graph(model: ir.Model, data_folder: Path) -> onnx.ModelProto:
    _check_size(weight_bytes(model))
    return self_contained(model, data_folder)


def _check_size(size_bytes: int) -> None:
    if size_bytes > TRAINABLE_LIMIT_BYTES:
        raise RequestError(
            f"the model is too large to be trained: {size_bytes / 1e9:.2f} GB of weights, and at "
            f"most {TRAINABLE_LIMIT_BYTES / 1e9:.2f} GB fit into one gradient graph: do without "
            "--recover"
        )


def _key(reference: Path, candidate: onnx.ModelProto, lessons: Lessons, how: str) -> str:
    """What identifies a recovery; ``how`` are its settings."""
    content = np.frombuffer(serialized(candidate, instead=SMALLER), np.uint8)
    return content_key(
        "recovery 10",
        content_digest(reference, load_model(reference)),
        {"candidate": content},
        lessons.samples.mask_name or "",
        *lessons.inputs,
        how,
    )
