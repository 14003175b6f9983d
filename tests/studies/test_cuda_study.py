"""The table of half floats: every row is there, on the CPU as far as that goes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from studies import cuda
from tiny_models import samples, saved, two_layers

from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.runtime.session import open_session, run

SMALL = cuda.Shape(layers=2, width=32, neurons=64, heads=4, vocabulary=50, positions=20)
ROWS = [
    "original, float32",
    "half floats (ONNX Runtime's tool)",
    "half floats",
    "75% of the neurons, half floats",
    "50% of the neurons, half floats",
    "50% of the parameters by low rank, half floats",
    "dynamic int8",
]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(cuda, "ROUNDS", 3)
    monkeypatch.setattr(cuda, "SLOW_ROUNDS", 2)
    monkeypatch.setattr(cuda, "SIZES", ((1, 4), (2, 8)))


def rows(subject, folder):
    lines = list(cuda.table(subject, folder, "cpu"))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {row[0]: row[1:] for row in cells}


def test_the_built_in_encoder_minds_its_mask():
    proto = cuda.encoder(SMALL)
    onnx.checker.check_model(proto, full_check=True)
    session = open_session(proto.SerializeToString())
    ids = np.random.default_rng(0).integers(1, 50, (2, 6))
    mask = np.array([[1] * 6, [1] * 4 + [0] * 2])
    padded = run(session, {"input_ids": ids, "attention_mask": mask})["y"]
    alone = run(session, {"input_ids": ids[1:, :4], "attention_mask": mask[1:, :4]})["y"]
    assert padded.shape == (2, 6, 32)
    np.testing.assert_allclose(padded[1:, :4], alone, atol=1e-5)


def test_it_has_the_shape_of_bert_base():
    weights = {t.name: tuple(t.dims) for t in cuda.encoder(SMALL).graph.initializer}
    assert weights["w1_1"] == (SMALL.width, SMALL.neurons)
    base = cuda.Shape()
    layer = 4 * base.width**2 + 2 * base.width * base.neurons
    table = (base.vocabulary + base.positions) * base.width
    assert 108e6 < base.layers * layer + table < 110e6


def test_all_rows_of_the_built_in_encoder(tmp_path):
    found = rows(cuda.built_in(tmp_path, SMALL), tmp_path)
    assert list(found) == ROWS
    assert all(len(row) == 5 for row in found.values())
    assert {row[0] for row in found.values()} == {"–"}
    assert found["original, float32"][-1].endswith("ms")
    assert "[" in found["dynamic int8"][-1]


def test_a_trained_model_has_accuracy(tmp_path):
    path = saved(tmp_path, two_layers((32, 64, 32))[0])
    learned = learn(path, samples(32, 100))
    found = rows(cuda.Subject(learned, samples(32, 20, seed=3)), tmp_path)
    assert float(found["half floats"][0]) > 0.99999
    assert float(found["50% of the neurons, half floats"][0]) < 0.99999
