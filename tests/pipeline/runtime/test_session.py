"""Sessions run on the provider that was asked for, or say why not in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser, save

from compress_onnx.graph_passes.errors import ModelFileError, ProviderError
from compress_onnx.pipeline.runtime import session as sessions
from compress_onnx.pipeline.runtime.session import (
    Provider,
    SessionSpec,
    open_session,
    provider_problems,
    run,
)

MODEL = parser.parse_model(
    '<ir_version: 10, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 3] y) '
    "{ a = MatMul(x, w)  y = Relu(a) }"
)
WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3) - 6
MODEL.graph.initializer.append(numpy_helper.from_array(WEIGHT, "w"))
BYTES = MODEL.SerializeToString()


@pytest.fixture
def cuda_missing() -> None:
    if provider_problems()["cuda"] is None:
        pytest.skip("CUDA works on this machine, so its absence cannot be tested")


def test_runs_and_returns_outputs_by_name() -> None:
    x = np.ones((2, 4), np.float32)
    outputs = run(open_session(BYTES, SessionSpec(threads=1)), {"x": x})
    np.testing.assert_allclose(outputs["y"], np.maximum(x @ WEIGHT, 0))


def test_no_outputs_are_none() -> None:
    assert run(open_session(BYTES), {"x": np.ones((2, 4), np.float32)}, []) == {}


def test_settings_of_the_spec_reach_the_session() -> None:
    options = open_session(BYTES, SessionSpec(threads=1, optimization="basic"))._sess_options
    assert options.intra_op_num_threads == 1
    assert options.inter_op_num_threads == 1
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_cuda_request_without_cuda_is_refused_on_one_line(cuda_missing: None) -> None:
    with pytest.raises(ProviderError, match="--provider cpu") as caught:
        open_session(BYTES, SessionSpec(provider="cuda"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("provider", "distribution"),
    [("cuda", "onnxruntime-gpu"), ("openvino", "onnxruntime-openvino")],
)
def test_provider_that_the_build_lacks_is_refused(
    monkeypatch: pytest.MonkeyPatch, provider: Provider, distribution: str
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ProviderError, match=f"install {distribution} ") as caught:
        open_session(BYTES, SessionSpec(provider=provider))
    assert "\n" not in str(caught.value)


def failing_openvino(monkeypatch: pytest.MonkeyPatch, message: str) -> list[Any]:
    """An OpenVINO provider that is there and raises; returns what it is asked for."""
    real, asked = ort.InferenceSession, []

    def create(model: Any, options: Any, providers: list[Any], **kwargs: Any) -> Any:
        if providers != ["CPUExecutionProvider"]:
            asked.extend(providers)
            raise RuntimeError(message)
        return real(model, options, providers=providers)

    both = ["OpenVINOExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: both)
    monkeypatch.setattr(ort, "InferenceSession", create)
    return asked


def test_openvino_takes_as_many_threads_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = failing_openvino(monkeypatch, "no")
    with pytest.raises(ProviderError):
        open_session(BYTES, SessionSpec(provider="openvino", threads=3))
    assert asked == [("OpenVINOExecutionProvider", {"device_type": "CPU", "num_of_threads": "3"})]


def test_operators_that_openvino_does_not_know_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_openvino(monkeypatch, "does not support the operations:\nAttention")
    with pytest.raises(ProviderError, match=r"Attention.*older --opset") as caught:
        open_session(BYTES, SessionSpec(provider="openvino"))
    assert "\n" not in str(caught.value)


@pytest.fixture
def failing_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA provider that is there and raises, as without a device but with a driver."""
    real = ort.InferenceSession

    def create(model: Any, options: Any, providers: list[str], **kwargs: Any) -> Any:
        if providers == ["CUDAExecutionProvider"]:
            assert kwargs == {"enable_fallback": 0}
            raise RuntimeError(
                "/src/onnxruntime/cuda_call.cc:129 onnxruntime::common::Status> "
                "onnxruntime::CudaCall(ERRTYPE) [with ERRTYPE = cudaError; bool THRW = true] "
                "CUDA failure 100:\nno CUDA-capable device ; GPU=-1 ; file=provider.cc"
            )
        return real(model, options, providers=providers)

    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: both)
    monkeypatch.setattr(ort, "InferenceSession", create)


@pytest.mark.usefixtures("failing_cuda")
def test_failing_provider_is_not_blamed_on_the_model() -> None:
    with pytest.raises(ProviderError, match=r"\(CUDA failure 100: no CUDA-capable device\)"):
        open_session(BYTES, SessionSpec(provider="cuda"))
    assert provider_problems()["cpu"] is None


@pytest.mark.usefixtures("failing_cuda")
def test_damaged_model_is_not_blamed_on_the_provider() -> None:
    with pytest.raises(ModelFileError):
        open_session(b"damaged", SessionSpec(provider="cuda"))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"absent\.onnx does not exist"):
        open_session(tmp_path / "absent.onnx")


@pytest.mark.parametrize("content", [b"", b"text", BYTES[: len(BYTES) // 2]])
def test_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "damaged.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"cannot load .*damaged\.onnx") as caught:
        open_session(path)
    assert "\n" not in str(caught.value)


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(ModelFileError, match="cannot run"):
        run(open_session(BYTES), {"x": np.ones((2, 5), np.float32)})


def test_optimized_model_is_written(tmp_path: Path) -> None:
    save(MODEL, tmp_path / "model.onnx")
    open_session(tmp_path / "model.onnx", optimized_path=tmp_path / "optimized.onnx")
    assert (tmp_path / "optimized.onnx").is_file()


def test_one_line_is_short() -> None:
    assert sessions.one_line(ValueError("a\n b")) == "a b"
    assert len(sessions.one_line(ValueError("a" * 1000))) == 300


@pytest.mark.cuda
def test_cuda_session_is_a_cuda_session() -> None:
    problem = provider_problems()["cuda"]
    if problem is not None:
        pytest.skip(problem)
    session = open_session(BYTES, SessionSpec(provider="cuda"))
    assert session.get_providers()[0] == "CUDAExecutionProvider"
