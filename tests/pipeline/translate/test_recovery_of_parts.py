"""Recovery of an encoder–decoder: one graph for training, and what was trained in both parts."""

from __future__ import annotations

import shutil

import hf_models
import numpy as np
import pytest
import torch

from compress_onnx.graph_passes.errors import DataError, RequestError
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec, Selection
from compress_onnx.graph_passes.rewriting.trainable import array_of, set_array
from compress_onnx.pipeline.data.masking import UNLABELLED
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.evidence.shifts import self_contained
from compress_onnx.pipeline.files.model_file import load_model, save_model
from compress_onnx.pipeline.recipe import RecoverySpec, SourceSpec
from compress_onnx.pipeline.runtime.batches import model_batches
from compress_onnx.pipeline.runtime.session import open_session, run
from compress_onnx.pipeline.translate.export_parts import (
    export_encoder_decoder,
    teacher_forced_logits,
)
from compress_onnx.pipeline.translate.generation import DECODER, DECODER_MERGED, ENCODER
from compress_onnx.pipeline.translate.parts import learn_parts
from compress_onnx.pipeline.translate.recovery import joined, recover_parts, sentence_lessons

pytest.importorskip("optimum.onnxruntime")
START = 0


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    checkpoint = hf_models.save(hf_models.marian(), tmp_path_factory.mktemp("marian"))
    folder = tmp_path_factory.mktemp("onnx")
    return export_encoder_decoder(checkpoint, SourceSpec(model="tiny", opset=17), folder).folder


@pytest.fixture(scope="module")
def sentences():
    rng = np.random.default_rng(0)
    sources = rng.integers(2, 100, size=(80, 9))
    mask = (np.arange(9) < rng.integers(3, 10, size=(80, 1))).astype(np.int64)
    mask[0] = 1
    targets = [rng.integers(2, 100, size=n).tolist() for n in rng.integers(2, 13, size=80)]
    return {"input_ids": sources * mask, "attention_mask": mask}, targets


def whole(folder):
    return joined(
        self_contained(load_model(folder / ENCODER), folder),
        self_contained(load_model(folder / DECODER), folder),
    )


def test_the_joined_graph_is_encoder_and_decoder(reference, sentences, tmp_path):
    sources, targets = sentences
    lessons = sentence_lessons(sources, targets, START).take(4)
    path = tmp_path / "joined.onnx"
    save_model(whole(reference), path)
    found = run(open_session(path), dict(lessons.inputs))["logits"]
    feeds = lessons.inputs
    for row in range(4):
        length = int(feeds["translated"][row].sum())
        alone = teacher_forced_logits(
            reference,
            {
                "input_ids": torch.from_numpy(feeds["encoder.input_ids"][row : row + 1]),
                "attention_mask": torch.from_numpy(feeds["encoder.attention_mask"][row : row + 1]),
                "decoder_input_ids": torch.from_numpy(
                    feeds["decoder.input_ids"][row : row + 1, :length]
                ),
            },
        )
        np.testing.assert_allclose(found[row, :length], alone[0], atol=1e-4)
        assert not found[row, length:].any()
        assert np.abs(found[row, :length]).min() > 0


def test_lessons_are_what_a_decoder_sees_and_says(sentences):
    sources, targets = sentences
    lessons = sentence_lessons(sources, targets, START)
    tokens, labels = lessons.inputs["decoder.input_ids"], lessons.labels
    assert labels is not None
    assert tokens.shape == labels.shape == lessons.inputs["encoder.input_ids"].shape == (80, 12)
    for row, target in enumerate(targets):
        length = len(target)
        assert labels[row, :length].tolist() == target
        assert (labels[row, length:] == UNLABELLED).all()
        assert tokens[row, :length].tolist() == [START, *target[:-1]]
        assert lessons.inputs["used"][row].sum() == max(
            length, sources["attention_mask"][row].sum()
        )


def test_batches_are_as_long_as_their_longest_text(reference, sentences, tmp_path):
    path = tmp_path / "joined.onnx"
    save_model(whole(reference), path)
    lessons = sentence_lessons(*sentences, START)
    for batch in model_batches(open_session(path), lessons, 8):
        lengths = {array.shape[1] for array in batch.feeds.values()}
        assert len(lengths) == 1
        assert batch.labels is not None
        longest = max(
            int(batch.feeds[name].sum(axis=1).max())
            for name in ("translated", "encoder.attention_mask")
        )
        assert lengths == {longest} == {batch.labels.shape[1]}


@pytest.mark.parametrize(
    ("targets", "problem"),
    [([[1, 2]], "give one for each"), ([[1, 2]] * 79 + [[]], "of text 80 is empty")],
)
def test_each_text_needs_a_translation(sentences, targets, problem):
    with pytest.raises(DataError, match=problem):
        sentence_lessons(sentences[0], targets, START)


def compressed(reference, output):
    request = CompressionSpec(
        method=MethodSpec(name="svd"), params=0.5, select=Selection(exclude=("lm_head",))
    )
    learned = learn_parts(reference)
    parts = learned.compressed(request)
    learned.write(parts, output)
    return parts.decoder.model


def logits(folder, lessons, decoder):
    """What both parts of ``folder`` say with the merged decoder, token by token from nothing."""
    feeds = lessons.inputs
    masks = {
        "attention_mask": feeds["encoder.attention_mask"],
        "input_ids": feeds["encoder.input_ids"],
    }
    hidden = run(open_session(folder / ENCODER), masks)["last_hidden_state"]
    session = open_session(folder / decoder)
    count = len(hidden)
    given = {
        "encoder_attention_mask": masks["attention_mask"],
        "encoder_hidden_states": hidden,
        "input_ids": feeds["decoder.input_ids"],
        "use_cache_branch": np.array([False]),
    }
    names = {value.name for value in session.get_inputs()}
    given |= {n: np.zeros((count, 4, 0, 8), np.float32) for n in names if n.startswith("past")}
    found = run(session, {name: array for name, array in given.items() if name in names})
    return found["logits"] * feeds["translated"][..., None]


def test_training_brings_what_generates_nearer_to_the_original(reference, sentences, tmp_path):
    decoder = compressed(reference, tmp_path)
    lessons = sentence_lessons(*sentences, START)
    wanted = logits(reference, lessons, DECODER_MERGED)
    before = logits(tmp_path, lessons, DECODER_MERGED)

    report = recover_parts(
        reference,
        tmp_path,
        decoder,
        lessons=lessons,
        recovery=RecoverySpec(budget=None, steps=60, train="factors", pooled=0, products="float32"),
        settings=RunSettings(),
    )

    after = logits(tmp_path, lessons, DECODER_MERGED)
    distances = [float(np.linalg.norm(found - wanted)) for found in (before, after)]
    assert report.improved
    assert distances[1] < 0.8 * distances[0]
    # The merged decoder says what was trained: the distance that training measured.
    relative = (distances[1] / np.linalg.norm(wanted - wanted.mean(axis=(0, 1)))) ** 2
    assert relative == pytest.approx(report.end_loss, rel=0.5)


def test_equal_vectors_cannot_become_different_ones(reference, sentences, tmp_path):
    alike, output = shutil.copytree(reference, tmp_path / "alike"), tmp_path / "output"
    output.mkdir()
    for name in (DECODER, DECODER_MERGED):
        model = load_model(alike / name)
        for key, value in model.graph.initializers.items():
            if key.startswith("model.decoder.layers.") and ".fc2.bias" in key:
                set_array(value, np.zeros(32, np.float32))
        save_model(model, alike / name)
    decoder = compressed(alike, output)
    untouched = [(output / name).read_bytes() for name in (ENCODER, DECODER_MERGED)]
    with pytest.raises(RequestError, match="train: factors"):
        recover_parts(
            alike,
            output,
            decoder,
            lessons=sentence_lessons(*sentences, START),
            recovery=RecoverySpec(budget=None, steps=60, train="all", pooled=0, products="float32"),
            settings=RunSettings(),
        )
    assert untouched == [(output / name).read_bytes() for name in (ENCODER, DECODER_MERGED)]


def test_a_part_with_other_weights_is_noticed(reference, sentences, tmp_path):
    """The comparison above fails for a damaged part."""
    lessons = sentence_lessons(*sentences, START)
    compressed(reference, tmp_path)
    model = load_model(tmp_path / ENCODER)
    start = logits(tmp_path, lessons, DECODER_MERGED)
    for value in model.graph.initializers.values():
        if len(value.const_value.shape) == 2 and value.const_value.shape[0] == 32:
            set_array(value, 2 * array_of(value))
    save_model(model, tmp_path / ENCODER)
    assert not np.allclose(start, logits(tmp_path, lessons, DECODER_MERGED), atol=1e-3)
