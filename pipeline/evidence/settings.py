"""How a model is run while it is looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from compress_onnx.pipeline.files.cache import ArrayCache
from compress_onnx.pipeline.results import Trial
from compress_onnx.pipeline.runtime.backend import Backend, Embedded
from compress_onnx.pipeline.runtime.progress import Progress, Silent
from compress_onnx.pipeline.runtime.session import SessionSpec


@dataclass(frozen=True)
class RunSettings:
    """What every step that runs a model needs to know.

    Attributes:
        session: provider, threads and optimizations.
        batch_size: samples at a time.
        seed: of everything random.
        cache: where what was computed is kept between runs; None keeps nothing.
        progress: shows the steps.
        on_trial: told of each trial of a search as soon as it is measured.
        allow_code: whether Python code that a recipe names may run.
        backend: where independent jobs run.
    """

    session: SessionSpec = field(default_factory=SessionSpec)
    batch_size: int = 32
    seed: int = 0
    cache: ArrayCache | None = None
    progress: Progress = field(default_factory=Silent)
    on_trial: Callable[[Trial], None] = lambda _trial: None
    allow_code: bool = False
    backend: Backend = field(default_factory=Embedded)
