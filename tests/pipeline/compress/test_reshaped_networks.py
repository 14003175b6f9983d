"""GPT-2, whose networks have Reshapes in between, loses neurons at every size of its inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_runner import Cli
from graph_collection import Graph, export

from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.rewriting.canonicalize import CanonicalizePass
from compress_onnx.graph_passes.sites.ffn import find_ffns
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.pipeline.compress.integers import prepare_integers
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.data.feeds import as_samples
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.model_file import load_model, save_model
from compress_onnx.pipeline.recipe import RecoverySpec
from compress_onnx.pipeline.recover.recover import Lessons, recover_in_memory
from compress_onnx.pipeline.runtime.inner_values import exposed
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import open_session, run

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("gpt2")]

NEURONS = CompressionSpec(
    method=MethodSpec(name="neurons"), params=0.5, sequential=False, allocation="uniform"
)
HIDDEN = 128
SIZES = ((1, 1), (2, 8), (3, 11))


@pytest.fixture(scope="module", params=[("dynamo", 20), ("optimum", 17)], ids=str)
def gpt2(request, tmp_path_factory) -> Graph:
    for needed in ("torch", "optimum") if request.param[0] == "optimum" else ("torch",):
        pytest.importorskip(needed)
    folder = tmp_path_factory.mktemp("gpt2")
    export("gpt2", *request.param, folder)
    return Graph("gpt2", request.param[0], path=folder / "model.onnx")


@pytest.fixture(scope="module")
def data(gpt2) -> Samples:
    return as_samples(gpt2.feeds(batch=40)[-1], gpt2.inputs())


def error(right: Path, ours: Path, feeds) -> float:
    """Of the logits, relative to what is not their mean."""
    expected, found = (next(iter(run(open_session(p), feeds).values())) for p in (right, ours))
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected - expected.mean()))


def hidden_sizes(path: Path, feeds) -> set[int]:
    """The last axes of the hidden values, as they are computed and as they are recorded."""
    model = load_model(path)
    CanonicalizePass()(model)
    ffns = find_ffns(find_sites(model).sites).ffns
    assert len(ffns) == 2
    values = [value for ffn in ffns for value in ffn.hidden]
    recorded = {value.shape[-1] for value in values if value.shape is not None}
    outputs = run(open_session(exposed(model, [value.name or "" for value in values])), feeds)
    return recorded | {outputs[value.name].shape[-1] for value in values}


def test_half_of_the_neurons(gpt2, data, tmp_path):
    written = tmp_path / "half.onnx"
    plan = learn(gpt2.path, data).compress(NEURONS).write(written)
    onnx.checker.check_model(onnx.load(written), full_check=True)
    assert {network.neurons for network in plan.thinned} == {HIDDEN // 2}
    for batch, length in SIZES:
        feeds = gpt2.feeds(batch, length)[-1]
        assert error(gpt2.path, written, feeds) < 0.5
        assert hidden_sizes(written, feeds) == {HIDDEN // 2}


def test_by_the_command_line(gpt2, data, tmp_path, capsys, monkeypatch):
    np.savez(tmp_path / "data.npz", **data.inputs)
    written = tmp_path / "small.onnx"
    options = ["-p", "0.6", "-o", written, "--no-benchmark"]
    Cli(capsys, monkeypatch)(
        "compress", gpt2.path, "-c", tmp_path / "data.npz", "--method", "neurons", *options
    )
    feeds = gpt2.feeds(2, 5)[-1]
    assert error(gpt2.path, written, feeds) < 0.5
    assert max(hidden_sizes(written, feeds)) < HIDDEN


def test_integers_and_neurons_aside(gpt2, data, tmp_path):
    """One neuron of each network reaches far beyond the others."""
    proto = onnx.load(gpt2.path)
    for tensor in proto.graph.initializer:
        factor = 60 if "c_fc" in tensor.name else 1 / 60 if "mlp.c_proj.w" in tensor.name else None
        if factor is not None:
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[..., 3] *= factor
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    far = tmp_path / "far.onnx"
    onnx.save(proto, far)
    prepared = prepare_integers(far, data)
    assert len(prepared.outliers) == 2
    save_model(prepared.rounded().model, tmp_path / "integers.onnx")
    for batch, length in SIZES:
        assert error(far, tmp_path / "integers.onnx", gpt2.feeds(batch, length)[-1]) < 0.1
    plain = prepare_integers(far, data, outliers=0)
    save_model(plain.rounded().model, tmp_path / "plain.onnx")
    feeds = gpt2.feeds(2, 8)[-1]
    ours, theirs = (error(far, tmp_path / f"{n}.onnx", feeds) for n in ("integers", "plain"))
    assert ours < theirs


def test_recovery_trains_them(gpt2, data):
    request = NEURONS.model_copy(update={"params": 0.1})
    model = learn(gpt2.path, data).compress(request).model
    settings = RecoverySpec(budget=None, steps=100, mixing=0.0)
    report = recover_in_memory(
        gpt2.path, model, Lessons(data), settings, RunSettings(), data_folder=gpt2.path.parent
    )
    assert report.improved
