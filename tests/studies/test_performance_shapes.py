"""Full-size shapes, at a small size: fewer neurons are fewer, and a whole table comes out."""

from __future__ import annotations

import numpy as np
import pytest
from studies.performance import shapes
from studies.performance.shapes import SHAPES, Shape, first_neurons, made_up
from tiny_models import samples, saved, two_layers

from compress_onnx.graph_passes.sites.ffn import find_ffns
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.pipeline.compress.rivals import RIVALS
from compress_onnx.pipeline.files.model_file import save_model
from compress_onnx.pipeline.files.original import open_original
from compress_onnx.pipeline.runtime.session import open_session, run

TINY = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def outputs(model, tmp_path, feeds):
    save_model(model, tmp_path / "out.onnx")
    return run(open_session(tmp_path / "out.onnx"), feeds)["y"]


def test_all_neurons_are_the_same_model(tmp_path):
    original = open_original(saved(tmp_path, two_layers((6, 8, 5))[0]))
    feeds = dict(samples().inputs)
    whole = outputs(original.copy(), tmp_path, feeds)
    np.testing.assert_allclose(
        outputs(first_neurons(original, 1.0), tmp_path, feeds), whole, rtol=1e-5, atol=1e-6
    )
    assert not np.allclose(outputs(first_neurons(original, 0.5), tmp_path, feeds), whole)


def test_half_of_the_neurons_are_half(tmp_path):
    original = open_original(saved(tmp_path, two_layers((6, 8, 5))[0]))
    (ffn,) = find_ffns(find_sites(first_neurons(original, 0.5)).sites).ffns
    assert ffn.neurons == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_a_small_one_of_each_shape(name, tmp_path):
    full = SHAPES[name]
    settings = {
        "vit-base": {**TINY, "image_size": 16, "patch_size": 4},
        "bert-large": TINY,
        "marian-decoder": {
            **full.settings,
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "vocab_size": 100,
            "pad_token_id": 99,
            "decoder_start_token_id": 99,
            "max_position_embeddings": 128,
        },
    }[name]
    settings.pop("vocab_size" if name == "vit-base" else "", None)
    small = Shape(full.architecture, full.configuration, settings, full.sizes)
    heading, _, *lines = shapes.table(small, tmp_path, rounds=3)
    assert heading == "Over the original:"
    found = {line.split(" | ")[0].strip("| ") for line in lines[: lines.index("")][2:]}
    assert found == {"original", *RIVALS, "integers", "50% of the neurons, integers"}
    assert not [line for line in lines if "not measured" in line]


@pytest.mark.slow
def test_weights_are_the_same_each_time(tmp_path):
    small = Shape("BertModel", "BertConfig", TINY, {"1×8": (1, 8)})
    values = []
    for index in range(2):
        (tmp_path / str(index)).mkdir()
        path = shapes.exported(small, tmp_path / str(index))
        session = open_session(path)
        values.append(run(session, made_up(path, 1, 8))["last_hidden_state"])
    np.testing.assert_array_equal(*values)
