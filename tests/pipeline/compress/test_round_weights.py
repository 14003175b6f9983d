"""A model with weights of few bits: nearer by its data, smaller by its embeddings."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_models import samples, saved, two_layers

from compress_onnx.pipeline.compress import optimize as module
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
def test_small_tables_are_taken_where_they_cost_nothing(encoder, tmp_path, objective):
    learned = learn(encoder, ids(100))
    spec = OptimizeSpec(
        max_drop=0.05,
        objective=objective,
        benchmark=BenchmarkSpec(warmup=1, iterations=5, batch=2, length=LENGTH),
    )
    report = optimize(learned, ids(40, 7), tmp_path / "best.onnx", spec)
    trials = {trial.name: trial for trial in report.trials}
    assert not [trial.problem for trial in report.trials if trial.problem]
    for bits in (8, 4) if objective == "size" else (8,):
        behind = f", {bits}-bit embeddings"
        pairs = [(n, n.removesuffix(behind)) for n in trials if n.endswith(behind)]
        assert len(pairs) > 1
        for small, large in pairs:
            fewer_bytes = trials[large].size_bytes - trials[small].size_bytes
            row_bytes = FEATURES + 4 if bits == 8 else FEATURES // 2 + FEATURES // 32 * 2
            names_and_nodes = 2000
            assert fewer_bytes > ROWS * (4 * FEATURES - row_bytes) - names_and_nodes
    if objective == "size":
        assert "embeddings" in report.winner
        best = tmp_path / "best.onnx"
        assert trials[report.winner].size_bytes == model_size(best, best).candidate_bytes
        assert any(name.startswith("4-bit weights and residual") for name in trials)


@pytest.mark.parametrize(("speed", "taken"), [(1.99, True), (1.9, False)])
def test_smaller_files_win_among_equally_fast_ones(encoder, tmp_path, monkeypatch, speed, taken):
    timed = module._Search._timed

    def timed_as_told(self, trials):
        def told(trial):
            small = trial.name == "neurons, integers, 100.0%, 8-bit embeddings"
            ours = {"neurons, integers, 100.0%": 2.0}.get(trial.name, 1.0)
            return speed if small else ours

        return [t.model_copy(update={"speedup": told(t)}) for t in timed(self, trials)]

    monkeypatch.setattr(module._Search, "_timed", timed_as_told)
    monkeypatch.setattr(module, "STEPS", 0)
    quick = BenchmarkSpec(warmup=1, iterations=5, batch=2, length=LENGTH)
    spec = OptimizeSpec(max_drop=0.05, benchmark=quick)
    report = optimize(learn(encoder, ids(100)), ids(40, 7), tmp_path / "best.onnx", spec)
    assert report.winner.endswith("8-bit embeddings") == taken
    assert report.winner.startswith("neurons, integers, 100.0%")
