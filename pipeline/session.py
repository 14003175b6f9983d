"""ONNX Runtime sessions that run on the provider that was asked for, or not at all.

ONNX Runtime silently falls back to the CPU when a provider cannot be created;
:func:`open_session` compares what was asked for with what the session really has.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort
from pydantic import BaseModel, ConfigDict, Field

from graph_passes.errors import ModelFileError, ProviderError

Provider = Literal["cpu", "cuda"]

EXECUTION_PROVIDERS: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
}

_OPTIMIZATION_LEVELS = {
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


class SessionSpec(BaseModel):
    """How a model is run: on which provider, with how many threads and which optimizations."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: Provider = "cpu"
    threads: int | None = Field(default=None, ge=1, description="None: all available cores")
    optimization: Literal["off", "basic", "extended", "all"] = "all"
    profile_prefix: str | None = None

    @property
    def thread_count(self) -> int:
        """The number of intra-op threads that a session gets."""
        return self.threads or available_cores()


def available_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def open_session(model: Path | bytes, spec: SessionSpec | None = None) -> ort.InferenceSession:
    """Open a session on exactly the provider that ``spec`` names.

    Args:
        model: a path, or a serialized model without external data.
        spec: defaults to ``SessionSpec()``.

    Raises:
        ProviderError: the provider is not in this ONNX Runtime, or could not be created.
        ModelFileError: ONNX Runtime refuses the model.
    """
    spec = spec or SessionSpec()
    wanted = EXECUTION_PROVIDERS[spec.provider]
    if wanted not in ort.get_available_providers():
        raise ProviderError(
            f"this ONNX Runtime has no {wanted}, only {', '.join(ort.get_available_providers())}: "
            "install onnxruntime-gpu, or use --provider cpu"
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = spec.thread_count
    options.inter_op_num_threads = 1
    options.graph_optimization_level = _OPTIMIZATION_LEVELS[spec.optimization]
    options.log_severity_level = 4
    if spec.profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = spec.profile_prefix
    name = str(model) if isinstance(model, Path) else "the model"
    try:
        session = ort.InferenceSession(
            os.fspath(model) if isinstance(model, Path) else model, options, providers=[wanted]
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise ModelFileError(f"ONNX Runtime cannot load {name}: {one_line(error)}") from error
    if session.get_providers()[0] != wanted:
        raise ProviderError(
            f"{wanted} could not be created on this machine (no device or driver, or CUDA/cuDNN "
            "libraries missing): use --provider cpu, or run where there is a GPU"
        )
    return session


def one_line(error: BaseException, limit: int = 300) -> str:
    """The message of ``error`` on one line, shortened."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def provider_problems() -> dict[Provider, str | None]:
    """For each known provider ``None`` where it really works here, else the reason."""
    problems: dict[Provider, str | None] = {}
    for provider in EXECUTION_PROVIDERS:
        try:
            open_session(_identity_model(), SessionSpec(provider=provider))
            problems[provider] = None
        except ProviderError as error:
            problems[provider] = str(error)
    return problems


def _identity_model() -> bytes:
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "probe", value[:1], value[1:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def run(
    session: ort.InferenceSession,
    feeds: dict[str, np.ndarray],
    outputs: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Run ``session`` and return its outputs by name.

    Raises:
        ModelFileError: ONNX Runtime fails while it runs the model.
    """
    names = list(outputs) if outputs is not None else [o.name for o in session.get_outputs()]
    try:
        values = session.run(names, feeds)
    except Exception as error:
        raise ModelFileError(f"ONNX Runtime cannot run the model: {one_line(error)}") from error
    return dict(zip(names, (np.asarray(value) for value in values), strict=True))
