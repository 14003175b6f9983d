"""The trained translation models in the repository: small, and they have learnt to translate."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from compress_onnx.pipeline.data.pairs import SentencePair

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")

from models import marian  # noqa: E402  # imports torch

MODELS = Path(__file__).parents[2] / "models"
SETUPS = {
    name: import_module(f"models.{name}.train").SETUP
    for name in ("gettext-marian", "gettext-marian-en")
}
SENTENCES = {
    "gettext-marian": (">>de<< The server is not available.", "Server"),
    "gettext-marian-en": ("Le serveur n'est pas disponible.", "erver is not"),
}


@pytest.fixture(scope="module", params=SETUPS)
def named(request):
    return request.param, *marian.load(SETUPS[request.param].folder)


def test_the_stored_model_is_what_its_setup_builds(named):
    name, model, tokenizer = named
    built = marian.build_model(SETUPS[name], tokenizer)
    shapes = {key: tuple(value.shape) for key, value in built.state_dict().items()}
    assert shapes == {key: tuple(value.shape) for key, value in model.state_dict().items()}


def test_it_translates(named):
    name, model, tokenizer = named
    text, word = SENTENCES[name]
    (found,) = marian.translate(model, tokenizer, [text])
    assert word in found
    damaged = marian.build_model(SETUPS[name], tokenizer).eval()
    assert word not in marian.translate(damaged, tokenizer, [text])[0]


def test_beams_search_further(named):
    name, model, tokenizer = named
    text, word = SENTENCES[name]
    assert word in marian.translate(model, tokenizer, [text, text], beams=2)[1]


@pytest.mark.parametrize("name", SETUPS)
def test_weights_are_small_files_of_half_floats(name):
    path = SETUPS[name].folder / "model.safetensors"
    assert path.stat().st_size <= 25_000_000
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert {entry["dtype"] for key, entry in header.items() if key != "__metadata__"} == {"F16"}


def test_matrices_that_write_into_the_residual_stream_begin_small(named):
    name, _, tokenizer = named
    setup = SETUPS[name]
    started = []
    for gain in (1.0, 0.25):
        torch.manual_seed(0)
        started.append(marian.build_model(replace(setup, residual_gain=gain), tokenizer))
    for (key, large), small in zip(
        started[0].named_parameters(), started[1].parameters(), strict=True
    ):
        share = 0.25 if key.endswith(("v_proj.weight", "out_proj.weight", "fc2.weight")) else 1.0
        assert torch.allclose(small, share * large), key


def test_a_step_of_training_helps(named):
    name, _, tokenizer = named
    setup = SETUPS[name]
    pairs = [SentencePair("de", "a b", "c d")]
    batch = marian.encode(setup, pairs * 4, tokenizer)
    torch.manual_seed(0)
    fresh = marian.build_model(setup, tokenizer).eval()
    losses = []
    for _ in range(8):
        loss = marian.loss_of(fresh, batch, 0.0)
        losses.append(loss.item())
        fresh.zero_grad()
        loss.backward()
        for optimizer in marian.make_optimizers(setup, fresh):
            optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def test_the_rate_rises_and_falls():
    rates = [marian.learning_rate_factor(step, 1000, 100) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[99] == rates[599] == 1
    assert rates[-1] == pytest.approx(1 / 400)


def test_training_goes_on_where_it_was_interrupted(tmp_path):
    layer = torch.nn.Linear(2, 2)
    marian.save_checkpoint(tmp_path / "checkpoint.pt", [layer], 7)
    other = torch.nn.Linear(2, 2)
    assert marian.load_checkpoint(tmp_path / "none.pt", [other]) == 0
    assert not torch.equal(layer.weight, other.weight)
    assert marian.load_checkpoint(tmp_path / "checkpoint.pt", [other]) == 7
    assert torch.equal(layer.weight, other.weight)
