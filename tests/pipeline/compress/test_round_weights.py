"""A model with weights of few bits: nearer by its data, smaller by its embeddings."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_models import samples, saved, two_layers

from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.compress.optimize import OptimizeSpec, optimize
from compress_onnx.pipeline.compress.weight_only import round_weights
from compress_onnx.pipeline.files.model_file import model_size, save_model
from compress_onnx.pipeline.recipe import BenchmarkSpec
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import open_session, run

FEATURES = 64
ROWS, LENGTH = 400, 5


@pytest.fixture
def data():
    """Inputs that vary together, as those of real layers do."""
    mix = np.random.default_rng(1).standard_normal((FEATURES, FEATURES))
    mix *= np.geomspace(1, 0.01, FEATURES)[:, None]
    x = samples(FEATURES, 200).inputs["x"] @ mix.astype(np.float32)
    return Samples({"x": x / x.std()})


@pytest.fixture
def model(tmp_path):
    return saved(tmp_path, two_layers((FEATURES, 128, FEATURES))[0])


def error(model, other, data, tmp_path):
    if isinstance(other, ir.Model):
        save_model(other, tmp_path / "other.onnx")
        other = tmp_path / "other.onnx"
    right, found = (run(open_session(p), data.inputs)["y"] for p in (model, other))
    return np.linalg.norm(found - right) / np.linalg.norm(right)


def test_data_and_a_residual_bring_the_outputs_nearer(model, data, tmp_path):
    blind = round_weights(model, None)
    seeing = round_weights(model, data)
    repaired = round_weights(model, data, residual=0.25)
    errors = [error(model, m.model, data, tmp_path) for m in (blind, seeing, repaired)]
    assert errors[1] < 0.8 * errors[0]
    assert errors[2] < 0.8 * errors[1]
    assert seeing.damage.keys() == {"first.weight", "second.weight"}
    assert all(repaired.damage[key] < seeing.damage[key] for key in seeing.damage)
    assert not seeing.floats


def test_gradients_are_used_where_they_fit(model, data):
    found = learn(model, data)
    gradients = found.evidence.gradients("positions").stats
    weighed = round_weights(model, data, gradients=gradients)
    other = dict.fromkeys(gradients, gradients["second"])
    assert weighed.damage.keys() == round_weights(model, data, gradients=other).damage.keys()
    assert weighed.damage != round_weights(model, data).damage


def test_layers_that_cannot_have_reasons(tmp_path):
    proto, _ = two_layers((FEATURES, 128, FEATURES))
    proto.graph.node[0].op_type = "Gemm"
    proto.graph.node[0].attribute.append(helper.make_attribute("alpha", 2.0))
    proto.graph.input[0].CopyFrom(
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", FEATURES])
    )
    proto.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", FEATURES])
    )
    found = round_weights(saved(tmp_path, proto), None)
    assert found.damage.keys() == {"second.weight"}
    assert found.floats == {"first": "its Gemm scales by alpha or beta"}


@pytest.fixture
def encoder(tmp_path):
    """Rows of a table, and two layers behind them."""
    proto, _ = two_layers((FEATURES, 128, FEATURES))
    table = np.random.default_rng(3).standard_normal((ROWS, FEATURES)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(table, "table"))
    proto.graph.node.insert(0, helper.make_node("Gather", ["table", "i"], ["x"], "rows"))
    shape = ["batch", "length"]
    proto.graph.input[0].CopyFrom(helper.make_tensor_value_info("i", TensorProto.INT64, shape))
    onnx.checker.check_model(proto)
    return saved(tmp_path, proto)


def ids(count, seed=0):
    rng = np.random.default_rng(seed)
    return Samples({"i": rng.integers(0, ROWS, (count, LENGTH))})


@pytest.mark.parametrize("objective", ["size", "latency"])
def test_integers_come_with_small_tables(encoder, tmp_path, objective):
    spec = OptimizeSpec(max_drop=0.05, objective=objective)
    quick = BenchmarkSpec(warmup=1, iterations=5, batch=2, length=LENGTH)
    best = tmp_path / "best.onnx"
    report = optimize(learn(encoder, ids(100)), ids(40, 7), best, spec, benchmark=quick).report
    trials = {trial.name: trial for trial in report.trials}
    assert not [trial.problem for trial in report.trials if trial.problem]
    size = {name: trial.size_bytes for name, trial in trials.items()}
    assert size["dynamic int8"] - size["all neurons, integers"] > 2 * ROWS * FEATURES
    if objective == "size":
        eight, four = "all neurons, 4-bit weights", "all neurons, 4-bit weights and embeddings"
        assert size["4-bit weights"] - size[eight] > 2 * ROWS * FEATURES
        assert size[eight] - size[four] > ROWS * FEATURES // 4
        assert any("4-bit weights and residual" in name for name in trials)
        assert not trials[report.winner].rival
        assert size[report.winner] == model_size(best, best).candidate_bytes
