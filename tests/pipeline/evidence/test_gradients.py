import numpy as np
import onnx
import pytest
from graphs import model, weights
from onnx import TensorProto, helper
from tiny_models import BATCH, LENGTH, samples, saved, two_layers

from compress_onnx.graph_passes.errors import NotDifferentiableError
from compress_onnx.pipeline.evidence.gradients import output_gradients
from compress_onnx.pipeline.evidence.objective import change, signs
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.cache import ArrayCache
from compress_onnx.pipeline.files.original import open_original
from compress_onnx.pipeline.runtime.samples import Batch


def collect(path, data, **options):
    settings = RunSettings(**{"batch_size": BATCH, **options})
    return output_gradients(open_original(path), data, settings)


def batch_of(data, mask=None):
    return Batch(dict(data.inputs), np.arange(len(data)), mask, None)


def test_gradients_of_two_layers_by_hand(tmp_path):
    proto, weights = two_layers()
    data = samples(count=BATCH)
    found = collect(saved(tmp_path, proto), data, seed=3)
    x = data.inputs["x"].astype(np.float64)
    hidden = np.tanh(x @ weights["first.weight"] + weights["first.bias"])
    y = hidden @ weights["second.weight"]
    second = signs(y, batch_of(data), "positions", np.random.default_rng(3))
    first = (second @ weights["second.weight"].T) * (1 - hidden**2)
    for name, gradient, inputs in (("first", first, x), ("second", second, hidden)):
        rows, stats = gradient.reshape(-1, gradient.shape[-1]), found.stats[name]
        squares = np.sum(gradient**2, axis=-1)
        np.testing.assert_allclose(stats.moment, rows.T @ rows / BATCH, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.weights[name][0], squares, rtol=1e-4, atol=1e-5)
        mean = np.average(inputs.reshape(-1, inputs.shape[-1]), axis=0, weights=squares.reshape(-1))
        np.testing.assert_allclose(stats.inputs.mean, mean, atol=1e-5)


SLICED = """g (float[N,3,6] x) => (float[N,3,4] y) {
    m = MatMul(x, w)
    a = Slice(m, zero, two, last)
    b = Slice(m, minus_two, end, last, one)
    c = Slice(m, two, four, last)
    ab = Concat<axis=-1>(a, b)
    cc = Concat<axis=-1>(c, c)
    y = Mul(ab, cc)
}"""


def test_slices_of_a_batch_of_open_size_have_gradients(tmp_path):
    numbers = {"zero": 0, "one": 1, "two": 2, "four": 4, "minus_two": -2, "last": -1, "end": 2**62}
    arrays = {name: np.array([number]) for name, number in numbers.items()}
    arrays |= weights(w=(6, 7))
    data = samples(count=BATCH)
    found = collect(saved(tmp_path, model(SLICED, arrays)), data, seed=3)
    m = data.inputs["x"] @ arrays["w"]
    signed = signs(m[..., :4], batch_of(data), "positions", np.random.default_rng(3))
    expected = np.zeros_like(m)
    c = m[..., 2:4]
    expected[..., :2] = signed[..., :2] * c
    expected[..., -2:] += signed[..., 2:] * c
    expected[..., 2:4] += signed[..., :2] * m[..., :2] + signed[..., 2:] * m[..., -2:]
    rows = expected.reshape(-1, 7)
    (stats,) = found.stats.values()
    np.testing.assert_allclose(stats.moment, rows.T @ rows / BATCH, rtol=1e-3, atol=1e-4)


def test_same_seed_same_gradients_and_the_cache_returns_them(tmp_path):
    path = saved(tmp_path, two_layers()[0])
    cache = ArrayCache(tmp_path / "cache")
    one, two, three = (collect(path, samples(), cache=cache) for _ in range(3))
    fresh = collect(path, samples())
    for other in (two, three, fresh):
        for site, stats in one.stats.items():
            np.testing.assert_array_equal(stats.moment, other.stats[site].moment)
            np.testing.assert_array_equal(stats.inputs.mean, other.stats[site].inputs.mean)
            for ours, theirs in zip(one.weights[site], other.weights[site], strict=True):
                np.testing.assert_array_equal(ours, theirs)
    assert (tmp_path / "cache").is_dir()


def test_the_model_is_left_as_it_was(tmp_path):
    path = saved(tmp_path, two_layers()[0])
    subject = open_original(path)
    before = [node.name for node in subject.model.graph]
    output_gradients(subject, samples(), RunSettings())
    assert [node.name for node in subject.model.graph] == before
    assert len(subject.model.graph.outputs) == 1


def test_an_operator_without_gradient_is_refused_by_name(tmp_path):
    proto, _ = two_layers()
    rois = np.array([[0, 0, 0, 1, 1]], np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(rois, "rois"))
    axes = onnx.numpy_helper.from_array(np.array([1]), "axes")
    proto.graph.initializer.append(axes)
    proto.graph.node.extend(
        [
            helper.make_node("Unsqueeze", ["y", "axes"], ["image"]),
            helper.make_node("MaxRoiPool", ["image", "rois"], ["pooled"], pooled_shape=[1, 1]),
        ]
    )
    del proto.graph.output[:]
    proto.graph.output.append(
        helper.make_tensor_value_info("pooled", TensorProto.FLOAT, [1, 1, 1, 1])
    )
    with pytest.raises(NotDifferentiableError, match="MaxRoiPool"):
        collect(saved(tmp_path, proto), samples())


@pytest.mark.parametrize("objective", ["positions", "pooled"])
def test_signs_project_what_change_measures(objective):
    rng = np.random.default_rng(0)
    output = rng.standard_normal((BATCH, LENGTH, 5))
    mask = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 1, 1]], bool)
    batch = Batch({}, np.arange(BATCH), mask, None)
    delta = 1e-3 * rng.standard_normal(output.shape)
    projected = [
        float(np.sum(np.sum(signs(output, batch, objective, rng) * delta, axis=(1, 2)) ** 2))
        for _ in range(4000)
    ]
    measured = change(output, output + delta, batch, objective)
    assert np.mean(projected) == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("objective", ["positions", "pooled"])
def test_padding_neither_seeds_nor_counts(objective):
    rng = np.random.default_rng(1)
    output = rng.standard_normal((2, 3, 4))
    mask = np.array([[1, 1, 0], [1, 0, 0]], bool)
    batch = Batch({}, np.arange(2), mask, None)
    assert not signs(output, batch, objective, rng)[~mask].any()
    changed = output + 5.0 * ~mask[..., None]
    assert change(output, changed, batch, objective) == 0.0


def test_pooled_ignores_length():
    output = np.random.default_rng(2).standard_normal((2, 3, 4))
    batch = Batch({}, np.arange(2), None, None)
    assert change(output, 2 * output, batch, "pooled") == pytest.approx(0.0, abs=1e-20)
    assert change(output, 2 * output, batch, "positions") > 1
