"""Training through rounding: the straight-through formula, and that what is trained is served."""

from __future__ import annotations

import ffn_forms
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from ffn_forms import SPELLINGS
from graphs import model as graph
from graphs import weights
from tiny_models import samples, saved, two_layers

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization.rounding import InputScale, round_weight
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.rewriting.trainable import array_of, network_weights, set_array
from compress_onnx.pipeline.compress.integers import PreparedModel, prepare_integers
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.compress.weight_only import PreparedWeights, prepare_weights
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.evidence.shifts import self_contained
from compress_onnx.pipeline.files.model_file import save_model
from compress_onnx.pipeline.recipe import RecoverySpec
from compress_onnx.pipeline.recover.compared import Compared, target_of, weight_of
from compress_onnx.pipeline.recover.distillation import Distillation
from compress_onnx.pipeline.recover.recover import Lessons
from compress_onnx.pipeline.recover.rounded_graph import round_columns
from compress_onnx.pipeline.recover.rounding import Blocks, Rounding
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run

ONE_THREAD = SessionSpec(threads=1)
SETTINGS = RunSettings(session=ONE_THREAD, batch_size=8)


# The formula


def rounded_input(x, scale):
    """x̂ and its derivative by x, as the docstring has them."""
    step, zero = float(scale.scale), int(scale.zero_point)
    q = np.clip(np.rint(x / step) + zero, 0, 255)
    inside = (x >= -step * zero) & (x <= step * (255 - zero))
    return step * (q - zero), inside


@pytest.mark.parametrize("limit", [127, 63])
def test_the_gradient_is_the_straight_through_formula(limit):
    rng = np.random.default_rng(0)
    text = """g (float[B,6] x) => (float[B,4] y) {
        m = MatMul(x, w1)  a = Add(m, b1)  h = Tanh(a)
        y = Gemm<transB = 1>(h, w2, b2)
    }"""
    start = weights(w1=(6, 5), b1=(5,), w2=(4, 5), b2=(4,))
    # The second range is too short: some values are clipped, and get no gradient.
    first, second = (InputScale(np.float32(s), np.uint8(z)) for s, z in ((0.03, 120), (0.004, 100)))
    distillation = Distillation(
        graph(text, start),
        list(start),
        [Compared("y", 2, pooled=False)],
        rounding=Rounding({"m": first, "y": second}, limit),
    )
    x, target = rng.normal(size=(7, 6)), rng.normal(size=(7, 4))
    weight = rng.uniform(0, 1, size=(7, 1))
    feeds = {"x": x, target_of("y"): target, weight_of("y"): weight}
    feeds = {name: array.astype(np.float32) for name, array in feeds.items()}
    served = distillation.served({name: torch.from_numpy(w) for name, w in start.items()})
    loss, gradients = distillation.gradient(feeds, served)

    def decoded(matrix):
        made = round_weight(matrix, limit)
        return made.numbers * made.scale.astype(np.float64)

    w1, w2 = decoded(start["w1"]), decoded(start["w2"].T)
    x1, _ = rounded_input(feeds["x"], first)
    h = np.tanh(x1 @ w1 + start["b1"])
    x2, inside = rounded_input(h, second)
    assert 0 < inside.mean() < 1
    difference = x2 @ w2 + start["b2"] - target
    g_y = 2 * weight * difference
    g_a = (g_y @ w2.T) * inside * (1 - h**2)
    expected = {"w1": x1.T @ g_a, "b1": g_a.sum(axis=0), "w2": g_y.T @ x2, "b2": g_y.sum(axis=0)}
    assert loss == pytest.approx(np.sum(weight * difference**2), rel=1e-4)
    assert distillation.loss(feeds, served) == pytest.approx(loss, rel=1e-6)
    for name, gradient in expected.items():
        np.testing.assert_allclose(gradients[name], gradient, rtol=1e-3, atol=1e-4, err_msg=name)


def test_weights_are_rounded_as_they_will_be_stored():
    matrix = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    matrix[:, 2] = 0
    made = round_weight(matrix)
    for axis, stored in ((1, matrix), (0, matrix.T)):
        ours = round_columns(torch.tensor(stored), axis, 127).numpy()
        decoded = made.numbers * made.scale
        np.testing.assert_allclose(ours if axis else ours.T, decoded, rtol=1e-5, atol=1e-7)


# What is trained is what is served


def prepared_of(path, inputs, **arguments) -> PreparedModel:
    return prepare_integers(path, Samples(inputs), SETTINGS, **arguments)


def loss_against(
    prepared: PreparedModel | PreparedWeights, rounding: Rounding, feeds, target
) -> float:
    """Mean squared difference of what training computes from ``target``."""
    output = prepared.model.graph.outputs[0].name or ""
    proto = self_contained(prepared.model, prepared.source.data_folder)
    trained = [value.name or "" for value in rounding.weights(prepared.model)]
    start = {v.name or "": torch.from_numpy(array_of(v)) for v in rounding.weights(prepared.model)}
    compared = [Compared(output, target.ndim, pooled=False)]
    distillation = Distillation(proto, trained, compared, rounding=rounding)
    share = np.full((*target.shape[:-1], 1), 1 / target.size, np.float32)
    terms = {target_of(output): target, weight_of(output): share}
    return distillation.loss({**feeds, **terms}, distillation.served(start))


@pytest.mark.parametrize("name", SPELLINGS)
def test_training_computes_what_the_rounded_model_does(name, tmp_path):
    path, feeds = tmp_path / "model.onnx", ffn_forms.feeds(name)
    onnx.save(ffn_forms.build(name), path)
    prepared = prepared_of(path, feeds)
    save_model(prepared.rounded().model, tmp_path / "integers.onnx")
    target = next(iter(run(open_session(tmp_path / "integers.onnx", ONE_THREAD), feeds).values()))
    scale = float(np.mean(target**2))
    same = loss_against(prepared, prepared.rounding, feeds, target)
    other = loss_against(prepared, Rounding(prepared.rounding.scales, 15), feeds, target)
    assert same < 1e-6 * scale
    assert other > 100 * same


@pytest.fixture
def reference(tmp_path):
    """A network with one neuron that reaches far beyond the others."""
    proto, numbers = two_layers((32, 64, 16), activation="Relu")
    numbers["first.weight"][:, 5] *= 60
    numbers["second.weight"][5] /= 60
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(numbers[tensor.name], tensor.name))
    return saved(tmp_path, proto)


def noisy(reference, samples) -> ir.Model:
    """Fewer neurons, and noise on what is left."""
    request = CompressionSpec(method=MethodSpec(name="neurons"), params=0.75, sequential=False)
    model = learn(reference, samples).compress(request).model
    rng = np.random.default_rng(0)
    for value in network_weights(model):
        array = array_of(value)
        noise = rng.normal(size=array.shape) * np.sqrt(np.mean(array**2, axis=0)) / 4
        set_array(value, (array + noise).astype(np.float32))
    return model


def served_error(reference, prepared, path, x) -> float:
    save_model(prepared.rounded().model, path)
    right, ours = (run(open_session(p, ONE_THREAD), {"x": x})["y"] for p in (reference, path))
    return float(np.linalg.norm(ours - right) / np.linalg.norm(right - right.mean(axis=(0, 1))))


def test_training_lowers_the_error_of_the_rounded_model(reference, tmp_path):
    """On data that it never saw; and its loss is that of the model that is served."""
    data, unseen = samples(32, 150), samples(32, 60, seed=9).inputs["x"]
    prepared = prepare_integers(noisy(reference, data), data, SETTINGS)
    assert sum(prepared.outliers.values())
    start = served_error(reference, prepared, tmp_path / "start.onnx", unseen)
    before = {name: array_of(v) for name, v in prepared.model.graph.initializers.items()}
    settings = RecoverySpec(budget=None, steps=120, mixing=0.0, learning_rate=0.01)
    report = prepared.recover(reference, Lessons(data), settings, SETTINGS)
    end = served_error(reference, prepared, tmp_path / "end.onnx", unseen)
    assert report.improved
    assert end < 0.7 * start
    changed = {
        name
        for name, value in prepared.model.graph.initializers.items()
        if not np.array_equal(array_of(value), before[name])
    }
    branch = {name for name in before if ".outliers" in name}
    assert len(branch) == 3
    assert branch < changed
    assert len(changed) == 3 + 4  # the branch, and two weights with their biases
    held_out = np.concatenate(
        [data.inputs["x"][start : start + 8] for start in range(8 * 5, 150, 80)]
    )
    served = served_error(reference, prepared, tmp_path / "end.onnx", held_out)
    assert served**2 == pytest.approx(report.end_loss, rel=0.05)


def test_training_through_rounding_helps_where_the_floats_are_exact(reference, tmp_path):
    data, unseen = samples(32, 150), samples(32, 60, seed=9).inputs["x"]
    prepared = prepare_integers(reference, data, SETTINGS, limit=3)
    start = served_error(reference, prepared, tmp_path / "start.onnx", unseen)
    settings = RecoverySpec(budget=None, steps=150, mixing=0.0, learning_rate=0.01)
    report = prepared.recover(reference, Lessons(data), settings, SETTINGS)
    assert report.improved
    assert served_error(reference, prepared, tmp_path / "end.onnx", unseen) < 0.9 * start


def test_a_rate_that_diverges_leaves_the_model_as_it_was(reference):
    data = samples(32, 150)
    prepared = prepare_integers(reference, data, SETTINGS)
    before = {name: array_of(v) for name, v in prepared.model.graph.initializers.items()}
    settings = RecoverySpec(budget=None, steps=30, mixing=0.0, learning_rate=10.0)
    assert not prepared.recover(reference, Lessons(data), settings, SETTINGS).improved
    for name, value in prepared.model.graph.initializers.items():
        assert np.array_equal(array_of(value), before[name]), name


def test_layers_that_there_are_not_are_refused(reference):
    model = prepare_integers(reference, samples(32, 150), SETTINGS).model
    rounding = Rounding({"elsewhere": InputScale(np.float32(1), np.uint8(0))})
    with pytest.raises(RequestError, match="no layer that computes 'elsewhere'"):
        rounding.weights(model)


# Weights in blocks


@pytest.mark.parametrize("transposed", [False, True])
def test_training_computes_what_weights_in_blocks_do(transposed, tmp_path):
    """But for the inputs, which ONNX Runtime rounds to 8 bits on its way."""
    numbers = weights(w=(16, 40) if transposed else (40, 16), b=(16,))
    layer = f"Gemm<transB = {int(transposed)}>(x, w, b)"
    path, feeds = tmp_path / "model.onnx", weights(3, x=(20, 40))
    onnx.save(graph(f"g (float[B,40] x) => (float[B,16] y) {{ y = {layer} }}", numbers), path)
    prepared = prepare_weights(path, Samples(feeds), SETTINGS)
    save_model(prepared.rounded().model, tmp_path / "served.onnx")
    target = run(open_session(tmp_path / "served.onnx", ONE_THREAD), feeds)["y"]
    same = loss_against(prepared, prepared.rounding, feeds, target)
    blocks = {name: Blocks(2 * b.scale, b.bits) for name, b in prepared.rounding.blocks.items()}
    other = loss_against(prepared, Rounding(blocks=blocks), feeds, target)
    assert same < 1e-4 * np.mean(target**2)
    assert other > 30 * same


def test_training_lowers_the_error_of_weights_in_blocks(reference, tmp_path):
    """On data that it never saw."""
    data, unseen = samples(32, 150), samples(32, 60, seed=9).inputs["x"]
    prepared = prepare_weights(noisy(reference, data), data, SETTINGS)
    start = served_error(reference, prepared, tmp_path / "start.onnx", unseen)
    settings = RecoverySpec(budget=None, steps=200, mixing=0.0, learning_rate=0.01)
    report = prepared.recover(reference, Lessons(data), settings, SETTINGS)
    assert report.improved
    end = served_error(reference, prepared, tmp_path / "end.onnx", unseen)
    assert end < 0.7 * start


def test_a_weight_inside_a_branch_is_not_trained(tmp_path):
    path = tmp_path / "model.onnx"
    text = """g (float[B,32] x, bool flag) => (float[B,32] y) {
        m = MatMul(x, v)
        y = If (flag) <
            then_branch = yes () => (float[B,32] p) { p = MatMul(m, w) },
            else_branch = no () => (float[B,32] q) { q = Neg(m) }
        > }"""
    onnx.save(graph(text, weights(w=(32, 32), v=(32, 32))), path)
    prepared = prepare_weights(path, None, SETTINGS)
    assert list(prepared.found) == ["v"]
    assert list(prepared.floats.values()) == ["inside an If, Loop or Scan"]
