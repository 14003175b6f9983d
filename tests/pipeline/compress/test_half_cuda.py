"""Half floats on a GPU: what the CPU cannot show, as it computes them in float32."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cli_runner import Cli
from graphs import difference, model, weights
from stranger_graphs import STRANGERS
from studies import cuda
from tiny_models import samples, saved, two_layers

from compress_onnx.pipeline.compress.half import half_model
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.compress.rivals import half_floats
from compress_onnx.pipeline.files.model_file import save_model
from compress_onnx.pipeline.measure.batch_invariance import batch_invariance
from compress_onnx.pipeline.measure.kernel_times import executed_op_counts
from compress_onnx.pipeline.measure.validate import validate
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import (
    SessionSpec,
    open_session,
    provider_problems,
    run,
)

PROBLEM = provider_problems()["cuda"]
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM)),
]

ON_CUDA = SessionSpec(provider="cuda")
PRECISION = 2.0**-11
TOLERANCE = 16 * PRECISION
LOOSE = {"several-outputs", "quantized-between"}
"""A mean of numbers that cancel out, which are rounded at their size; and integers between floats,
which a rounding may move by one."""

SMALL = cuda.Shape(layers=2, width=64, neurons=256, heads=4, vocabulary=100, positions=64)


def on_cuda(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return run(open_session(proto.SerializeToString(), ON_CUDA), feeds)


def on_cpu(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return run(open_session(proto.SerializeToString()), feeds)


def halved(proto: onnx.ModelProto, data: Samples | None = None) -> onnx.ModelProto:
    return ir.to_proto(half_model(proto, data).model)


@pytest.fixture
def sentences() -> Samples:
    """Of 5 to 24 tokens."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 25, 48)
    mask = (np.arange(24) < lengths[:, None]).astype(np.int64)
    ids = rng.integers(1, SMALL.vocabulary, mask.shape) * mask
    return Samples({"input_ids": ids, "attention_mask": mask}, "attention_mask")


@pytest.fixture
def encoder(tmp_path):
    path = tmp_path / "encoder.onnx"
    onnx.save(cuda.encoder(SMALL), path)
    return path


@pytest.mark.parametrize("name", sorted(STRANGERS))
def test_graphs_of_other_exporters(name):
    """The same on CUDA in float16 as on the CPU in float32."""
    before = STRANGERS[name].build()
    data = STRANGERS[name].samples()
    feeds = dict(data.inputs)
    found = difference(on_cpu(before, feeds), on_cuda(halved(before, data), feeds))
    assert found < (4 if name in LOOSE else 1) * TOLERANCE


def test_an_encoder_is_near_what_it_was(encoder, sentences, tmp_path):
    half = half_model(encoder, sentences)
    assert not half.floats
    save_model(half.model, tmp_path / "half.onnx")
    report = validate(encoder, tmp_path / "half.onnx", sentences, spec=ON_CUDA)
    assert report.outputs[0].cosine > 0.9999
    assert batch_invariance(tmp_path / "half.onnx", sentences, ON_CUDA) > 0.9999
    # A model of other weights is not near.
    save_model(half_model(cuda.encoder(SMALL, seed=1)).model, tmp_path / "other.onnx")
    report = validate(encoder, tmp_path / "other.onnx", sentences, spec=ON_CUDA)
    assert report.outputs[0].cosine < 0.9


def test_float16_products_are_executed_as_such(encoder, tmp_path):
    """No Cast but those at the border: no kernel was missing, none was moved to the CPU."""
    save_model(half_model(encoder).model, tmp_path / "half.onnx")
    counts = executed_op_counts(tmp_path / "half.onnx", ON_CUDA)
    reference = executed_op_counts(encoder, ON_CUDA)
    assert counts.get("Cast", 0) <= reference.get("Cast", 0) + 2
    assert counts.get("MemcpyToHost", 0) == reference.get("MemcpyToHost", 0)
    half_floats(encoder, tmp_path / "theirs.onnx")
    theirs = executed_op_counts(tmp_path / "theirs.onnx", ON_CUDA)
    assert sum(counts.values()) <= sum(theirs.values()) + 2


@pytest.mark.parametrize("scale", [1e2, 1, 1e-4])
@pytest.mark.parametrize("sum_", ["r = Relu(h)", "r = Add(h, x)"])
def test_a_norm_written_out_is_fused_and_exact(sum_, scale, tmp_path):
    """Its squares do not fit into float16 at the first scale, nor at the last."""
    before = model(
        f"""g (float[N,T,64] x) => (float[N,T,64] y) {{
            h = MatMul(x, w) {sum_} m = ReduceMean<axes=[-1]>(r) c = Sub(r, m)
            s = Pow(c, two) v = ReduceMean<axes=[-1]>(s) e = Add(v, epsilon) q = Sqrt(e)
            d = Div(c, q) t = Mul(d, gamma) n = Add(t, beta) y = MatMul(n, w) }}""",
        weights(w=(64, 64), gamma=(64,), beta=(64,))
        | {"two": np.array(2, np.float32), "epsilon": np.array(1e-12, np.float32)},
    )
    feeds = {"x": scale * weights(3, x=(4, 10, 64))["x"]}
    save_model(half_model(before, Samples(feeds)).model, tmp_path / "half.onnx")
    counts = executed_op_counts(tmp_path / "half.onnx", ON_CUDA)
    assert "ReduceMean" not in counts
    assert any("LayerNormalization" in operator for operator in counts)
    ours = run(open_session(tmp_path / "half.onnx", ON_CUDA), feeds)
    assert difference(on_cpu(before, feeds), ours) < TOLERANCE


def test_rows_that_are_masked_as_a_whole_stay_finite(encoder):
    feeds = {
        "input_ids": np.ones((2, 8), np.int64),
        "attention_mask": np.array([[1] * 8, [0] * 8]),
    }
    y = on_cuda(halved(onnx.load(encoder)), feeds)["y"]
    assert np.isfinite(y).all()


def test_what_overflows_stays_in_float32():
    before = model(
        "g (float[N,8] x) => (float[N,8] y) { a = Mul(x, c) b = Mul(a, c) d = Div(b, c) "
        "e = Div(d, c) y = MatMul(e, w) }",
        weights(w=(8, 8)) | {"c": np.array(400, np.float32)},
    )
    feeds = weights(3, x=(20, 8))
    assert half_model(before, Samples(feeds)).floats
    ours = on_cuda(halved(before, Samples(feeds)), feeds)
    assert difference(on_cpu(before, feeds), ours) < TOLERANCE


class TestOptimize:
    @pytest.fixture
    def cli(self, capsys, monkeypatch):
        return Cli(capsys, monkeypatch)

    def test_on_cuda_from_end_to_end(self, cli, tmp_path):
        path = saved(tmp_path, two_layers((32, 128, 32))[0])
        np.savez(tmp_path / "data.npz", **samples(32, 150).inputs)
        report, log = tmp_path / "report.json", tmp_path / "log.jsonl"
        options = ["--provider", "cuda", "--max-drop", "0.05", "--iterations", "5", "--no-cache"]
        best = tmp_path / "best.onnx"
        cli(
            *("optimize", path, "-c", tmp_path / "data.npz", *options, "--objective", "size"),
            *("-o", best, "--report", report, "--log", log),
        )
        found = json.loads(report.read_text())
        assert found["provider"] == "cuda"
        trials = {trial["name"]: trial for trial in found["trials"]}
        assert trials["half floats"]["rival"]
        assert trials["half floats"]["drop"]["value"] < 0.01
        ours = trials["all neurons, half floats"]
        assert ours["drop"]["value"] < 0.01
        assert not any("integers" in name for name in trials)
        x = {"x": samples(32, 8, seed=5).inputs["x"]}
        right, small = (run(open_session(p, ON_CUDA), x)["y"] for p in (path, best))
        assert np.linalg.norm(small - right) < 0.1 * np.linalg.norm(right)

    def test_an_encoder_by_latency(self, encoder, sentences, cli, tmp_path):
        np.savez(tmp_path / "data.npz", **sentences.inputs)
        options = ["--provider", "cuda", "--max-drop", "0.02", "--iterations", "10", "--no-cache"]
        report = tmp_path / "report.json"
        cli(
            *("optimize", encoder, "-c", tmp_path / "data.npz", *options, "--length", "24"),
            *("-o", tmp_path / "best.onnx", "--report", report, "--time", "2min"),
        )
        found = json.loads(report.read_text())
        winner = next(t for t in found["trials"] if t["name"] == found["winner"])
        assert winner["within"]
        assert winner["batch_invariance"] is None or winner["batch_invariance"] > 0.999


def test_the_study_has_all_rows(encoder, sentences, tmp_path, monkeypatch):
    monkeypatch.setattr(cuda, "ROUNDS", 5)
    monkeypatch.setattr(cuda, "SLOW_ROUNDS", 2)
    monkeypatch.setattr(cuda, "SIZES", ((1, 8), (2, 16)))
    folder = tmp_path / "built"
    folder.mkdir()
    subject = cuda.Subject(learn(encoder, sentences), sentences)
    lines = list(cuda.table(subject, folder, "cuda"))
    assert len(lines) == 2 + 7
    (half,) = [line for line in lines if line.startswith("| half floats |")]
    assert float(half.split("|")[2]) > 0.9999
    assert cuda.device() != "unknown device"
