"""The loss of recovery and its gradient, against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from graphs import model as graph
from graphs import weights

from compress_onnx.graph_passes.errors import DataError, NotDifferentiableError
from compress_onnx.pipeline.data.masking import UNLABELLED
from compress_onnx.pipeline.recover.compared import (
    Compared,
    label_of,
    share_of,
    target_of,
    weight_of,
)
from compress_onnx.pipeline.recover.distillation import Distillation
from compress_onnx.pipeline.recover.teacher import label_weights, pooling_shares, position_weights

# The loss and its gradient


def distillation_case(text, shapes, compared):
    """A graph whose weights are all trained, and these."""
    start = weights(**shapes)
    distillation = Distillation(graph(text, start), list(shapes), compared)
    return distillation, {name: torch.from_numpy(array) for name, array in start.items()}


def assert_gradient_is_right(distillation, feeds, trained):
    """Along random directions, against central differences."""
    loss, gradients = distillation.gradient(feeds, trained)
    assert loss == pytest.approx(distillation.loss(feeds, trained), rel=1e-5)
    random = torch.Generator().manual_seed(0)
    for name, weight in trained.items():
        direction = torch.randn(weight.shape, generator=random)
        size = 1e-2 / direction.norm()
        ahead, behind = (
            distillation.loss(feeds, {**trained, name: weight + sign * size * direction})
            for sign in (1, -1)
        )
        measured = (ahead - behind) / (2 * float(size))
        assert gradients[name].shape == weight.shape
        assert float((gradients[name] * direction).sum()) == pytest.approx(measured, rel=2e-2), name


def test_gradient_of_positions_and_of_their_mean_against_finite_differences():
    rng = np.random.default_rng(0)
    text = """g (float[B,T,6] x) => (float[B,T,5] y) {
        h = MatMul(x, down)
        z = MatMul(h, up)
        s = Add(z, bias)
        t = Tanh(s)
        y = LayerNormalization(t, scale, shift)
    }"""
    shapes = {"down": (6, 3), "up": (3, 5), "bias": (5,), "scale": (5,), "shift": (5,)}
    target = rng.normal(size=(2, 4, 5)).astype(np.float32)
    weight = rng.uniform(0, 1, size=(2, 4, 1)).astype(np.float32)
    feeds = {
        "x": rng.normal(size=(2, 4, 6)).astype(np.float32),
        target_of("y"): target,
        weight_of("y"): weight,
        share_of("y"): weight / 3,
    }
    compared = [Compared("y", 3, pooled=True)]
    distillation, start = distillation_case(text, shapes, compared)
    assert_gradient_is_right(distillation, feeds, start)


def test_gradient_of_a_gemm_and_of_a_value_inside_the_model():
    rng = np.random.default_rng(1)
    text = """g (float[B,6] x) => (float[B,4] y) {
        h = MatMul(x, down)
        a = Tanh(h)
        y = Gemm<alpha = 0.5>(a, up, bias)
    }"""
    shapes = {"down": (6, 3), "up": (3, 4), "bias": (4,)}
    feeds = {"x": rng.normal(size=(5, 6)).astype(np.float32)}
    for name, width in (("y", 4), ("h", 3)):
        feeds[target_of(name)] = rng.normal(size=(5, width)).astype(np.float32)
        feeds[weight_of(name)] = rng.uniform(0, 1, size=(5, 1)).astype(np.float32)
    compared = [Compared("y", 2, pooled=False), Compared("h", 2, pooled=False)]
    distillation, start = distillation_case(text, shapes, compared)
    assert_gradient_is_right(distillation, feeds, start)


def test_loss_is_the_relative_error_of_positions_and_of_means():
    rng = np.random.default_rng(2)
    target = rng.normal(size=(3, 4, 5)).astype(np.float32)
    real = (np.arange(4) < np.array([4, 2, 3])[:, None])[..., None].astype(np.float32)
    error = rng.normal(size=target.shape) * 0.1
    weighted = np.sum(position_weights(target, real, 2.0) * error**2)
    here = real[..., 0] > 0
    spread = np.sum((target[here] - target[here].mean(axis=0)) ** 2)
    assert weighted == pytest.approx(2 * np.sum(error[here] ** 2) / spread, rel=1e-5)
    pooled = np.sum(np.sum(pooling_shares(target, real, 3.0) * error, axis=1) ** 2)
    means = [
        np.sum(error[s][here[s]].mean(axis=0) ** 2) / np.sum(target[s][here[s]].mean(axis=0) ** 2)
        for s in range(3)
    ]
    assert pooled == pytest.approx(3 * np.mean(means), rel=1e-5)


@pytest.mark.parametrize(
    "labels",
    [np.array([0, 3, 1, 1, 2]), np.array([[0, UNLABELLED, 3], [UNLABELLED, 2, 1]])],
    ids=["a class a sample", "a token a labelled position"],
)
def test_loss_and_gradient_of_labels(labels):
    rng = np.random.default_rng(3)
    axes = ["B", "T"][: labels.ndim]
    text = f"""g (float[{",".join(axes)},6] x) => (float[{",".join(axes)},4] y) {{
        h = MatMul(x, down)
        y = MatMul(h, up)
    }}"""
    shapes = {"down": (6, 3), "up": (3, 4)}
    target = np.zeros((*labels.shape, 4), np.float32)
    feeds = {
        "x": rng.normal(size=(*labels.shape, 6)).astype(np.float32),
        target_of("y"): target,
        weight_of("y"): np.zeros((*labels.shape, 1), np.float32),
        label_of("y"): label_weights(target, labels, 2.0),
    }
    compared = [Compared("y", labels.ndim + 1, pooled=False, labelled=True)]
    distillation, start = distillation_case(text, shapes, compared)
    logits = (feeds["x"] @ start["down"].numpy() @ start["up"].numpy()).astype(np.float64)
    logarithms = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    labelled = np.nonzero(labels != UNLABELLED)
    entropy = -logarithms[*labelled, labels[labelled]].mean()
    assert distillation.loss(feeds, start) == pytest.approx(2 * entropy, rel=1e-5)
    assert_gradient_is_right(distillation, feeds, start)


def test_samples_without_labels_do_not_count_and_foreign_classes_are_refused():
    logits = np.zeros((2, 3), np.float32)
    assert not label_weights(logits, None, 1.0).any()
    for labels in (np.array([0, 3]), np.array([-1, 0]), np.array([0.0, 1.0])):
        with pytest.raises(DataError, match="whole numbers from 0 to 2"):
            label_weights(logits, labels, 1.0)
    with pytest.raises(DataError, match=r"one for each of \[2\], found \[3\]"):
        label_weights(logits, np.array([0, 1, 2]), 1.0)


def test_an_operator_without_gradient_is_named():
    text = """g (float[1,1,4,6] x) => (float[1,1,2,2] y) {
        h = MatMul(x, w)
        y = MaxRoiPool<pooled_shape = [2, 2]>(h, rois)
    }"""
    proto = graph(text, {**weights(w=(6, 4)), "rois": np.zeros((1, 5), np.float32)})
    distillation = Distillation(proto, ["w"], [Compared("y", 4, pooled=False)])
    feeds = weights(
        x=(1, 1, 4, 6),
        **{target_of("y"): (1, 1, 2, 2), weight_of("y"): (1, 1, 2, 1)},
    )
    with pytest.raises(NotDifferentiableError, match=r"no gradient .*MaxRoiPool"):
        distillation.gradient(feeds, {"w": torch.ones(6, 4)})
