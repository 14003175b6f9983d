"""ONNX Runtime sessions that run on the provider that was asked for, or not at all.

ONNX Runtime silently falls back to the CPU when a provider cannot be created;
:func:`open_session` compares what was asked for with what the session really has.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper
from pydantic import BaseModel, ConfigDict, Field

from compress_onnx.graph_passes.errors import ModelFileError, ProviderError
from compress_onnx.pipeline.runtime.baked_sizes import baked_sizes
from compress_onnx.pipeline.runtime.threads import thread_count

Provider = Literal["cpu", "cuda", "openvino"]

EXECUTION_PROVIDERS: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}

_DISTRIBUTIONS: dict[Provider, str] = {
    "cpu": "onnxruntime",
    "cuda": "onnxruntime-gpu",
    "openvino": "onnxruntime-openvino",
}
"""What has the provider; each in an environment of its own (:mod:`.distribution`)."""

_LIKELY_CAUSES: dict[Provider, str] = {
    "cpu": "",
    "cuda": "no device or driver, or CUDA/cuDNN libraries are missing",
    "openvino": "libraries of OpenVINO are missing",
}

_OPTIMIZATION_LEVELS = {
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_SEVERITY_FATAL = 4

_CUDA_FAILURE = re.compile(r"CUDA failure \d+: .*?(?= ; |$)")
_log = logging.getLogger(__name__)

Optimization = Literal["off", "basic", "extended", "all"]
"""The levels of ONNX Runtime's own rewriting of a graph."""


class SessionSpec(BaseModel):
    """How a model is run: on which provider, with how many threads and which optimizations."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: Provider = "cpu"
    threads: int | None = Field(default=None, ge=1, description="None: runtime.threads says")
    optimization: Optimization = "all"

    @property
    def thread_count(self) -> int:
        """The number of intra-op threads that a session gets."""
        return self.threads or thread_count()


def open_session(
    model: Path | bytes,
    spec: SessionSpec | None = None,
    *,
    data_folder: Path | None = None,
    spinning: bool = False,
    profile_prefix: Path | None = None,
    optimized_path: Path | None = None,
) -> ort.InferenceSession:
    """Open a session on exactly the provider that ``spec`` names.

    Args:
        model: a path, or a serialized model.
        spec: defaults to ``SessionSpec()``.
        data_folder: where the external data of a serialized model lies.
        spinning: idle threads wait busily for the next operator, as is ONNX Runtime's default: for
            sessions whose time is measured. It takes cores from everything else that runs.
        profile_prefix: profile all runs into a file whose path starts like this.
        optimized_path: write the graph that ONNX Runtime executes here, its weights beside it.

    Raises:
        ProviderError: the provider is not in this ONNX Runtime, or could not be created.
        ModelFileError: the file is missing, or ONNX Runtime refuses the model.
    """
    spec = spec or SessionSpec()
    _require_in_build(spec.provider)
    if isinstance(model, Path) and not model.is_file():
        raise ModelFileError(f"the model file {model} does not exist: check the path")
    options = _session_options(spec)
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    if data_folder is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", os.fspath(data_folder)
        )
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = os.fspath(profile_prefix)
    if optimized_path is not None:
        _write_optimized(options, optimized_path)
    try:
        session = _create(model, options, spec)
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise _refusal(model, spec, error) from error
    if session.get_providers()[0] != EXECUTION_PROVIDERS[spec.provider]:
        raise _provider_error(spec.provider, _LIKELY_CAUSES[spec.provider])
    return session


def check_loads(model: Path) -> None:
    """Make sure that ONNX Runtime loads the file ``model`` on the CPU.

    The graph is taken as it is: without optimizations and without repacked weights, external data
    is only mapped, so that this costs little memory. Weights inside the model are read and copied.

    Raises:
        ModelFileError: ONNX Runtime refuses the model.
    """
    options = _session_options(SessionSpec(threads=1, optimization="off"))
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        _create(model, options, SessionSpec())
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise _refusal(model, SessionSpec(), error) from error


def _require_in_build(provider: Provider) -> None:
    wanted, available = EXECUTION_PROVIDERS[provider], ort.get_available_providers()
    if wanted not in available:
        raise ProviderError(
            f"this ONNX Runtime has no {wanted}, only {', '.join(available)}: "
            f"install {_DISTRIBUTIONS[provider]} in an environment of its own, "
            "or use --provider cpu"
        )


def _session_options(spec: SessionSpec) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = spec.thread_count
    options.inter_op_num_threads = 1
    options.graph_optimization_level = _OPTIMIZATION_LEVELS[spec.optimization]
    options.log_severity_level = _SEVERITY_FATAL
    # Threads that spin after a run take the cores from the next session: without this, two
    # sessions that run in turn on two cores were each measured 1.5 times slower than alone.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _write_optimized(options: ort.SessionOptions, path: Path) -> None:
    options.optimized_model_filepath = os.fspath(path)
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", f"{path.name}.data"
    )


def _create(
    model: Path | bytes, options: ort.SessionOptions, spec: SessionSpec
) -> ort.InferenceSession:
    source = os.fspath(model) if isinstance(model, Path) else model
    wanted: list[str | tuple[str, dict[str, str]]] = [EXECUTION_PROVIDERS[spec.provider]]
    if spec.provider == "cpu":
        return ort.InferenceSession(source, options, providers=wanted)
    if spec.provider == "cuda":
        _preload_cuda()
    else:
        # OpenVINO has threads of its own, and takes as many as there are cores unless it is told.
        threads = {"device_type": "CPU", "num_of_threads": str(spec.thread_count)}
        wanted = [(EXECUTION_PROVIDERS["openvino"], threads)]
    # Without a fallback ONNX Runtime raises instead of printing and carrying on.
    return ort.InferenceSession(source, options, providers=wanted, enable_fallback=0)


@functools.cache
def _preload_cuda() -> None:
    """Load CUDA and cuDNN from the ``nvidia-*`` wheels, where they are installed as such."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        ort.preload_dlls()
    _log.debug("preloading CUDA: %s", printed.getvalue())


def _refusal(
    model: Path | bytes, spec: SessionSpec, error: Exception
) -> ModelFileError | ProviderError:
    """Whose fault is it: a model that the CPU can load was refused by the provider."""
    if spec.provider != "cpu":
        try:
            open_session(model, spec.model_copy(update={"provider": "cpu"}))
        except ModelFileError as same_on_cpu:
            return same_on_cpu
        return _provider_error(spec.provider, one_line(error))
    name = str(model) if isinstance(model, Path) else "the model"
    return ModelFileError(f"ONNX Runtime cannot load {name}: {one_line(error)}")


def _provider_error(provider: Provider, reason: str) -> ProviderError:
    advice = "run where there is a GPU"
    if provider == "openvino":
        advice = "where it names an operator that it does not know, export with an older --opset"
    return ProviderError(
        f"{EXECUTION_PROVIDERS[provider]} could not be created on this machine ({reason}): "
        f"use --provider cpu, or {advice}"
    )


def one_line(error: BaseException, limit: int = 300) -> str:
    """The message of ``error`` on one line, shortened.

    What ONNX Runtime says of CUDA stands between the signature of a C++ function and the call.
    """
    text = " ".join(str(error).split())
    if failure := _CUDA_FAILURE.search(text):
        text = failure[0]
    return text if len(text) <= limit else text[: limit - 1] + "…"


def require_provider(provider: Provider) -> None:
    """Make sure that ``provider`` works here, before anything else takes time.

    Raises:
        ProviderError: it does not.
    """
    open_session(trivial_model(), SessionSpec(provider=provider))


def provider_problems() -> dict[Provider, str | None]:
    """For each known provider ``None`` where it really works here, else the reason."""
    problems: dict[Provider, str | None] = {}
    for provider in EXECUTION_PROVIDERS:
        try:
            require_provider(provider)
            problems[provider] = None
        except ProviderError as error:
            problems[provider] = str(error)
    return problems


def trivial_model() -> bytes:
    """A model that returns its input: what opens it works, and has started what it needs."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "probe", value[:1], value[1:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def run(
    session: ort.InferenceSession,
    feeds: Mapping[str, np.ndarray],
    outputs: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Run ``session`` and return its outputs by name.

    Args:
        session: what :func:`open_session` returned.
        feeds: one array for each model input, by input name.
        outputs: the outputs to compute; None for all.

    Raises:
        ModelFileError: ONNX Runtime fails while it runs the model.
    """
    names = list(outputs) if outputs is not None else [o.name for o in session.get_outputs()]
    if not names:  # by which ONNX Runtime means all of them
        return {}
    try:
        values = session.run(names, dict(feeds))
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        reason = baked_sizes(str(error)) or one_line(error)
        raise ModelFileError(f"ONNX Runtime cannot run the model: {reason}") from error
    return dict(zip(names, (np.asarray(value) for value in values), strict=True))
