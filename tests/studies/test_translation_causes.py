"""How the study of translation makes and chooses low-rank layers."""

from __future__ import annotations

import hf_models
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("polib")

from studies import translation_causes as causes  # noqa: E402  # imports torch


@pytest.fixture(scope="module")
def model():
    return hf_models.marian()


def logits(model):
    tokens = torch.arange(6).reshape(1, 6)
    with torch.no_grad():
        return model(input_ids=tokens, decoder_input_ids=tokens).logits


def layers(model):
    return {name for name, part in model.named_modules() if isinstance(part, causes.LowRank)}


def test_layers_of_full_rank_are_the_original(model):
    found, kept = causes.factored(model, lambda _: 32, causes.everywhere)
    assert torch.allclose(logits(found), logits(model), atol=1e-4)
    assert kept > 1
    assert not layers(model)


def test_a_low_rank_does_damage(model):
    found, kept = causes.factored(model, lambda _: 4, causes.everywhere)
    assert not torch.allclose(logits(found), logits(model), atol=1e-2)
    assert 0 < kept < 0.5


@pytest.mark.parametrize(
    ("chosen", "count"),
    [
        (causes.attention, 4 + 2 * 8),
        (causes.networks, 2 + 2 * 2),
        (causes.everywhere, 26),
    ],
)
def test_what_is_chosen_is_factored_and_nothing_else(model, chosen, count):
    found, _ = causes.factored(model, lambda _: 4, chosen)
    assert len(layers(found)) == count
    assert all(chosen(name) for name in layers(found))


def test_ranks_are_the_documents_in_proportion_or_a_share_of_each_layer():
    square, wide = torch.nn.Linear(512, 512), torch.nn.Linear(512, 2048)
    assert [causes.one_rank(tenths)(square) for tenths in (3, 5, 10)] == [102, 170, 340]
    assert causes.one_rank(10)(wide) == 340
    assert causes.one_rank(5)(torch.nn.Linear(192, 768)) == 64
    assert (causes.one_share(5)(square), causes.one_share(5)(wide)) == (128, 204)
