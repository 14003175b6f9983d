"""How far values are off along the depth: what is compared, and why nothing is."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import model, weights

from compress_onnx.pipeline.divergence import depth
from compress_onnx.pipeline.divergence.depth import depth_profile
from compress_onnx.pipeline.runtime.samples import Samples

CHAIN = """g (float[b,8] x) => (float[b,4] y) {
    m = MatMul(x, w1)
    a = Add(m, b1)
    r = Relu(a)
    flat = Reshape(r, shape)
    n = MatMul(flat, w2)
    y = Add(n, b2)
}"""
FACTORED = CHAIN.replace("m = MatMul(x, w1)", "low = MatMul(x, down)\n    m = MatMul(low, up)")
FEWER = CHAIN.replace("w1", "few1").replace("b1", "fewb1").replace("w2", "few2")
SAMPLES = Samples(
    {"x": np.random.default_rng(1).normal(size=(20, 8)).astype(np.float32)}, origin="rows"
)


@pytest.fixture
def named():
    found = weights(w1=(8, 6), b1=(6,), w2=(6, 4), b2=(4,))
    left, right = np.linalg.qr(found["w1"])
    found |= {"down": left.astype(np.float32), "up": right.astype(np.float32)}
    found |= {"few1": found["w1"][:, :5], "fewb1": found["b1"][:5], "few2": found["w2"][:5]}
    return found | {"shape": np.array([-1, 6])}


def saved(folder: Path, name: str, text: str, named: dict[str, np.ndarray]) -> Path:
    if "few" in text:
        named = named | {"shape": np.array([-1, 5])}
    used = {key: array for key, array in named.items() if key in text}
    onnx.save(model(text, used), folder / f"{name}.onnx")
    return folder / f"{name}.onnx"


def noisy(named, size):
    noise = np.random.default_rng(2).normal(size=named["w1"].shape)
    return named | {"w1": (named["w1"] + size * noise).astype(np.float32)}


def errors(profile):
    assert profile.unmeasured is None
    return {one.tensor: one.error for one in profile.values}


def test_a_damaged_model_is_farther_off_than_a_good_one_from_the_damage_on(tmp_path, named):
    original = saved(tmp_path, "original", CHAIN, named)
    same, good, bad = (
        errors(depth_profile(original, saved(tmp_path, f"{s}", CHAIN, noisy(named, s)), SAMPLES))
        for s in (0.0, 0.01, 0.5)
    )
    assert list(bad) == ["a", "r", "y"]
    assert set(same.values()) == {0.0}
    assert all(0 < good[name] < 0.1 < bad[name] for name in bad)


def test_errors_are_the_means_of_single_samples(tmp_path, named):
    original = saved(tmp_path, "original", CHAIN, named)
    other = noisy(named, 0.2)
    profile = depth_profile(original, saved(tmp_path, "noisy", CHAIN, other), SAMPLES)
    assert (profile.samples, profile.origin) == (8, "rows")
    x = SAMPLES.inputs["x"][:8].astype(np.float64)
    right, wrong = (x @ w["w1"] + w["b1"] for w in (named, other))
    found = np.linalg.norm(wrong - right, axis=1) / np.linalg.norm(right, axis=1)
    assert errors(profile)["a"] == pytest.approx(found.mean(), rel=1e-5)


def test_products_before_a_bias_and_what_moves_numbers_say_nothing(tmp_path, named):
    original = saved(tmp_path, "original", CHAIN, named)
    profile = depth_profile(original, saved(tmp_path, "factored", FACTORED, named), SAMPLES)
    assert [(one.tensor, one.place) for one in profile.values] == [("a", 1), ("r", 2), ("y", 5)]
    assert max(errors(profile).values()) < 1e-5


def test_fewer_neurons_have_no_like_and_what_follows_has(tmp_path, named):
    original = saved(tmp_path, "original", CHAIN, named)
    profile = depth_profile(original, saved(tmp_path, "fewer", FEWER, named), SAMPLES)
    assert list(errors(profile)) == ["y"]


SIZES = """g (float[b,8] x) => (float[b,8] y) {
    s = Shape(x)
    f = Cast<to: int = 1>(s)
    root = Sqrt(f)
    t = Tanh(x)
    y = Reshape(t, whole)
}"""


def test_sizes_are_no_values_and_an_output_is_one(tmp_path, named):
    path = saved(tmp_path, "sizes", SIZES, {"whole": np.array([-1, 8])})
    assert list(errors(depth_profile(path, path, SAMPLES))) == ["t", "y"]


def in_module(path, module, renamed):
    """The same file, whose nodes say that they are of ``module``; their values get other names."""
    proto = onnx.load(path)
    outputs = {value.name for value in proto.graph.output}
    own = {name for node in proto.graph.node for name in node.output} - outputs
    for index, node in enumerate(proto.graph.node):
        node.name = f"node_{index}{renamed}"
        scope = node.metadata_props.add()
        scope.key, scope.value = "pkg.torch.onnx.name_scopes", str(["", module, node.name])
        for names in (node.input, node.output):
            names[:] = [f"{name}{renamed}" if name in own else name for name in names]
    onnx.save(proto, path)
    return path


def test_values_of_other_names_are_paired_by_place_where_nothing_was_added(tmp_path, named):
    original = in_module(saved(tmp_path, "original", CHAIN, named), "layer.0", "")
    other = in_module(saved(tmp_path, "other", CHAIN, named), "layer.0", "_2")
    profile = depth_profile(original, other, SAMPLES)
    assert [(one.tensor, one.module, one.node) for one in profile.values] == [
        ("a", "layer.0", "node_1"),
        ("r", "layer.0", "node_2"),
        ("y", "layer.0", "node_5"),
    ]
    more = CHAIN.replace("r = Relu(a)", "r2 = Relu(a)\n    r = Relu(r2)")
    added = in_module(saved(tmp_path, "added", more, named), "layer.0", "_2")
    assert list(errors(depth_profile(original, added, SAMPLES))) == ["a", "y"]


def test_what_is_not_finite_has_no_figure(tmp_path, named):
    original = saved(tmp_path, "original", CHAIN, named)
    broken = named | {"b2": np.array([0, 0, 0, math.nan], np.float32)}
    profile = depth_profile(original, saved(tmp_path, "broken", CHAIN, broken), SAMPLES)
    assert errors(profile) == {"a": 0.0, "r": 0.0, "y": None}


def test_padding_is_not_compared(tmp_path):
    text = """g (float[b,t] x, float[b,t] mask) => (float[b,t] y) {
        spoilt = Add(x, w)
        kept = Where(real, x, spoilt)
        y = Mul(kept, one)
    }"""
    text = text.replace("kept =", "real = Cast<to: int = 9>(mask)\n        kept =")
    paths = [
        saved(tmp_path, f"{w}", text, {"w": np.float32(w), "one": np.float32(1)}) for w in (1, 9)
    ]
    mask = (np.arange(5) < np.array([[5], [2], [3]])).astype(np.float32)
    samples = Samples({"x": np.ones((3, 5), np.float32), "mask": mask}, mask_name="mask")
    found = errors(depth_profile(*paths, samples))
    assert found["kept"] == found["y"] == 0
    assert found["spoilt"] > 1


def test_a_graph_of_a_fixed_batch_gets_that(tmp_path, named):
    fixed = CHAIN.replace("float[b", "float[10")
    path = saved(tmp_path, "fixed", fixed, named)
    assert depth_profile(path, path, SAMPLES).samples == 10


@pytest.mark.parametrize("spare", [-1, 0])
def test_what_is_too_large_says_so(tmp_path, named, monkeypatch, spare):
    """Once for the weights alone, once for them and the values of a sample, 2 x 16 floats."""
    path = saved(tmp_path, "original", CHAIN, named)
    weights = 5 * 2 * path.stat().st_size
    monkeypatch.setattr(depth, "MOST_BYTES", weights + 2 * 4 * (6 + 6 + 4))
    assert depth_profile(path, path, SAMPLES).unmeasured is None
    monkeypatch.setattr(depth, "MOST_BYTES", weights + spare)
    profile = depth_profile(path, path, SAMPLES)
    assert "GB of memory, and at most" in profile.unmeasured
    assert (profile.values, profile.samples, profile.origin) == ((), 0, "rows")


def test_a_known_error_is_the_reason_and_a_defect_is_raised(tmp_path, named, monkeypatch):
    path = saved(tmp_path, "original", CHAIN, named)
    assert "none.onnx" in depth_profile(path, tmp_path / "none.onnx", SAMPLES).unmeasured
    other = Samples({"x": np.ones((4, 3), np.float32)})
    assert "cannot run the model" in depth_profile(path, path, other).unmeasured

    def defect(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(depth, "relative_error", defect)
    with pytest.raises(ZeroDivisionError):
        depth_profile(path, path, SAMPLES)


def test_of_two_models_with_nothing_in_common_that_is_told(tmp_path, named):
    path = saved(tmp_path, "original", CHAIN, named)
    text = "g (float[b,8] x) => (float[b,8] z) { z = Tanh(x) }"
    other = saved(tmp_path, "other", text, {})
    assert "no value of the compressed model" in depth_profile(path, other, SAMPLES).unmeasured


def test_of_very_many_values_some_are_taken_along_the_whole_depth(tmp_path, monkeypatch):
    monkeypatch.setattr(depth, "MOST_VALUES", 5)
    steps = "".join(f"v{i} = Tanh({f'v{i - 1}' if i else 'x'})\n" for i in range(40))
    text = f"g (float[b,8] x) => (float[b,8] v39) {{ {steps} }}"
    path = saved(tmp_path, "long", text, {})
    places = [one.place for one in depth_profile(path, path, SAMPLES).values]
    assert places == [0, 10, 20, 29, 39]
