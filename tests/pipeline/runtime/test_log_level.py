"""The caller's log level of ONNX Runtime is the caller's."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest
import small_models as small
from cli_runner import start

from compress_onnx.pipeline.runtime.session import open_session, provider_problems


def test_nothing_sets_the_level_of_the_whole_process(monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[int] = []
    for name in ("set_default_logger_severity", "set_default_logger_verbosity"):
        monkeypatch.setattr(ort, name, changes.append)
    open_session(small.perceptron().SerializeToString())
    provider_problems()
    assert not changes


@pytest.mark.skipif("CUDAExecutionProvider" not in ort.get_available_providers(), reason="CPU ORT")
def test_the_command_line_says_in_one_line_that_there_is_no_cuda(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = small.save(small.perceptron(), tmp_path / "model.onnx")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    done = start("bench", model, model, "--provider", "cuda", code=2)
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "onnxruntime:" not in done.stderr  # as each of its own log lines has
