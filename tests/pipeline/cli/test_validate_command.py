"""``validate``: batch invariance, several providers, and the figures as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import small_models as small
from cli_runner import error_line

from compress_onnx.pipeline.cli import validate as validate_module
from compress_onnx.pipeline.compress.rivals import RIVALS
from compress_onnx.pipeline.measure.validate import validate
from compress_onnx.pipeline.runtime.session import SessionSpec, provider_problems

COMPARE = ("validate", "model.onnx")
CUDA_PROBLEM = provider_problems()["cuda"]
without_cuda = pytest.mark.skipif(CUDA_PROBLEM is None, reason="CUDA works on this machine")


@pytest.fixture
def dynamic(files):
    """``dynamic.onnx``: the model with integer scales from the batch at hand."""
    RIVALS["dynamic int8"](Path("model.onnx"), Path("dynamic.onnx"))


@pytest.mark.usefixtures("dynamic")
def test_dynamic_scales_fail_the_gate_of_batch_invariance_and_the_original_passes(cli):
    rows = ("--inputs", "data.npz", "--gate", "batch_invariance>=0.9999", "--json", "r.json")
    text = cli(*COMPARE, "model.onnx", *rows).out
    assert "alone and in a batch" in text
    assert "gate batch_invariance >= 0.9999: 1: passed" in text
    text = cli(*COMPARE, "dynamic.onnx", *rows, code=1).out
    assert "gate batch_invariance >= 0.9999: 0.99" in text
    report = json.loads(Path("r.json").read_text())
    found = report["validation"]
    assert found["batch_invariance"] < 0.9999 < found["batch_invariance_reference"] <= 1
    assert [gate["passed"] for gate in report["gates"]] == [False]
    assert report["environment"]["instruction_sets"] is not None


def test_batch_invariance_is_measured_where_it_is_asked_for(cli, files):
    rows = ("model.onnx", "--inputs", "data.npz")
    assert "alone" not in cli(*COMPARE, *rows).out
    assert "alone and in a batch" in cli(*COMPARE, *rows, "--batch-invariance").out


def test_a_graph_of_one_batch_size_cannot_show_it(cli, files):
    model = small.perceptron()
    for end in (model.graph.input[0], model.graph.output[0]):
        end.type.tensor_type.shape.dim[0].dim_value = 4
    small.save(model, files / "fixed.onnx")
    compare = ("validate", "fixed.onnx", "fixed.onnx", "--inputs", "data.npz")
    reason = "the graph fixes its batch at 4"
    assert reason in cli(*compare, "--batch-invariance").out
    text = cli(*compare, "--gate", "batch_invariance>=0.9", code=1).out
    assert f"not measured (batch invariance cannot be measured: {reason}" in text
    assert "FAILED" in text


@without_cuda
def test_a_provider_that_is_absent_is_refused_by_name_and_explained_by_auto(cli, files):
    refused = cli(*COMPARE, "model.onnx", "--provider", "cpu", "--provider", "cuda", code=2)
    assert "CUDAExecutionProvider" in error_line(refused)
    text = cli(*COMPARE, "model.onnx", "--provider", "auto").out
    assert "cuda not measured: " in text
    gate = ("--gate", "relative_l2.cuda<=1")
    text = cli(*COMPARE, "model.onnx", "--provider", "auto", *gate, code=1).out
    assert "gate relative_l2.cuda <= 1: not measured (" in text


def test_a_gate_on_a_provider_that_nobody_asked_for_is_refused(cli, files):
    refused = cli(*COMPARE, "model.onnx", "--gate", "relative_l2.cuda<=1", code=2)
    assert "did you mean 'relative_l2.cpu'" in error_line(refused)


@pytest.mark.usefixtures("dynamic")
def test_gates_of_each_provider(cli, monkeypatch):
    """A provider on which the candidate computes something else: here, another candidate."""

    def pretend(reference, candidate, samples, *, spec, **settings):
        wrong = Path("dynamic.onnx") if spec.provider == "cuda" else candidate
        found = validate(reference, wrong, samples, spec=SessionSpec(), **settings)
        return found.model_copy(update={"provider": spec.provider})

    monkeypatch.setattr(validate_module, "validate_models", pretend)
    gates = [x for name in ("", ".cpu", ".cuda") for x in ("--gate", f"relative_l2{name}<=0")]
    where = ("--provider", "cpu", "--provider", "cuda")
    text = cli(*COMPARE, "model.onnx", *where, *gates, "--json", "r.json", code=1).out
    assert "output on cuda" in text
    verdicts = [line.split()[-1] for line in text.splitlines() if line.startswith("gate")]
    assert verdicts == ["passed", "passed", "FAILED"]
    (other,) = json.loads(Path("r.json").read_text())["validation"]["elsewhere"]
    assert other["provider"] == "cuda"
    plain = ("--provider", "cuda", "--gate", "relative_l2<=0")
    cli(*COMPARE, "model.onnx", *plain, code=1)  # a plain name is that of the first provider
