"""Weights of strangers' graphs can be trained: gradients of the loss are finite differences."""

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from stranger_graphs import STRANGERS

from compress_onnx.pipeline.recover.compared import Compared, target_of, weight_of
from compress_onnx.pipeline.recover.distillation import Distillation


@pytest.mark.parametrize("name", ["conv-open-batch", "first-token-11", "roll-open-axis", "tile"])
def test_the_gradient_at_each_size(name):
    stranger = STRANGERS[name]
    proto = stranger.build()
    trained = ["w1", "w2"]
    weights = {
        tensor.name: torch.tensor(numpy_helper.to_array(tensor))
        for tensor in proto.graph.initializer
        if tensor.name in trained
    }
    rank = len(proto.graph.output[0].type.tensor_type.shape.dim)
    distillation = Distillation(proto, trained, [Compared("y", rank, pooled=False)])
    rng, directions = np.random.default_rng(0), torch.Generator().manual_seed(0)
    for count in (3, 2, 3):
        inputs = dict(stranger.samples(count).inputs)
        shape = (count, 5, 4) if rank == 3 else (count, 4)
        feeds = {
            **inputs,
            target_of("y"): rng.standard_normal(shape).astype(np.float32),
            weight_of("y"): np.ones((*shape[:-1], 1), np.float32),
        }
        loss, gradient = distillation.gradient(feeds, weights)
        assert loss == pytest.approx(distillation.loss(feeds, weights), rel=1e-5)
        for weight in trained:
            step = 1e-2 * torch.randn(weights[weight].shape, generator=directions)
            up, down = (
                distillation.loss(feeds, {**weights, weight: weights[weight] + sign * step})
                for sign in (1, -1)
            )
            expected = float(torch.sum(gradient[weight] * step))
            scale = float(gradient[weight].norm() * step.norm())
            assert (up - down) / 2 == pytest.approx(expected, abs=0.02 * scale)
