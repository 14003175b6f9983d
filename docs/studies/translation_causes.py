"""What makes the small translation model break: ``python -m studies.translation_causes``.

The linear layers of ``gettext-marian``'s encoder and decoder become truncated SVDs, in PyTorch, and
the same held-out sentences are translated greedily. One thing is varied at a time:

- how ranks are given: one rank for every layer, as the document has it (its 34 to 340 of a width of
  512, here the same share of the width), or the same share of the parameters of each;
- which layers: attention or feed-forward networks;
- with ``--train``, whether all weights are trained afterwards, on the sentences that the model
  learned from.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import nn
from transformers import MarianMTModel, PreTrainedTokenizerFast

from compress_onnx.pipeline.data.pairs import SentencePair
from compress_onnx.pipeline.files.atomic import atomic_file
from compress_onnx.pipeline.measure.metrics.bleu import mean_score, score_translations
from compress_onnx.pipeline.results import TranslationScore
from models.data.translations import tagged, translations

recipe = importlib.import_module("models.gettext-marian.train")
"""What trained the model."""

EACH = 40
"""Sentences of each language."""
BATCH = 256
STEPS, WARMUP, LEARNING_RATE, SMOOTHING = 150, 20, 2e-3, 0.1
THEIR_WIDTH, THEIR_STEP = 512, 34
"""The document's ranks are tenths of 340, that of all parameters of an encoder layer 512 wide."""
TENTHS = (10, 5)

logger = logging.getLogger(__name__)

Chosen = Callable[[str], bool]
Ranks = Callable[[nn.Linear], int]


@dataclass(frozen=True)
class Bench:
    """The original, its tokenizer, and the sentences."""

    model: MarianMTModel
    tokenizer: PreTrainedTokenizerFast
    held_out: Sequence[SentencePair]

    def score(self, model: MarianMTModel) -> TranslationScore:
        """Means over the languages of what ``model`` makes of the held-out sentences."""
        found = translated(model, self.tokenizer, self.held_out)
        by_language: dict[str, list[int]] = {}
        for number, pair in enumerate(self.held_out):
            by_language.setdefault(pair.language, []).append(number)
        scores = [
            score_translations(
                [found[n] for n in numbers], [self.held_out[n].target for n in numbers]
            )
            for numbers in by_language.values()
        ]
        return mean_score(scores)


class LowRank(nn.Module):
    """``y = x·A·B + b`` with ``A`` ``[K, r]``, ``B`` ``[r, N]``: the truncated SVD of a layer."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        """Factor ``layer``, whose weight is ``[N, K]``."""
        super().__init__()
        u, values, vt = torch.linalg.svd(layer.weight.detach().double().T, full_matrices=False)
        root = values[:rank].sqrt()
        self.left = nn.Parameter((u[:, :rank] * root).float())
        self.right = nn.Parameter((root[:, None] * vt[:rank]).float())
        self.bias = nn.Parameter(layer.bias.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[…, K]`` to ``[…, N]``."""
        return x @ self.left @ self.right + self.bias


def factored(model: MarianMTModel, ranks: Ranks, chosen: Chosen) -> tuple[MarianMTModel, float]:
    """A copy with low-rank layers, and the share of the chosen layers' parameters that is left."""
    found = copy.deepcopy(model)
    before = after = 0
    for name, layer in list(found.named_modules()):
        if not isinstance(layer, nn.Linear) or ".layers." not in name or not chosen(name):
            continue
        rank = ranks(layer)
        before += layer.weight.numel()
        after += rank * (layer.in_features + layer.out_features)
        parent, _, own = name.rpartition(".")
        setattr(found.get_submodule(parent), own, LowRank(layer, rank))
    return found, after / before


def one_rank(tenths: int) -> Ranks:
    """One rank for every layer: the document's ``34 · tenths``, in proportion to the width."""

    def ranks(layer: nn.Linear) -> int:
        width = min(layer.in_features, layer.out_features)
        return round(THEIR_STEP * tenths * width / THEIR_WIDTH)

    return ranks


def one_share(tenths: int) -> Ranks:
    """The same share of the parameters of each layer."""

    def ranks(layer: nn.Linear) -> int:
        height, width = layer.in_features, layer.out_features
        return int(tenths / 10 * height * width / (height + width))

    return ranks


def trained(model: MarianMTModel, tokenizer: PreTrainedTokenizerFast) -> MarianMTModel:
    """Train all of ``model`` on what it once learned from, against the translations."""
    pairs = translations(recipe.LANGUAGES, "train")
    examples = recipe.encode(pairs, tokenizer)
    batches = islice(recipe.batches(examples, torch.Generator().manual_seed(0)), STEPS)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, (0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP, (STEPS - step) / STEPS)
    )
    torch.manual_seed(0)
    model.train()
    for step, batch in enumerate(batches, 1):
        with torch.autocast("cpu", torch.bfloat16):
            loss = recipe.loss_of(model, batch, SMOOTHING)
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 25 == 0:
            logger.info("step %d: loss %.3f", step, loss.item())
    return model.eval()


@torch.inference_mode()
def translated(
    model: MarianMTModel, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[SentencePair]
) -> list[str]:
    """What ``model`` makes of the sources, greedily."""
    found: list[str] = []
    for start in range(0, len(pairs), BATCH):
        texts = [tagged(pair) for pair in pairs[start : start + BATCH]]
        inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        found += tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True)
    return found


def everywhere(_name: str) -> bool:
    """All layers."""
    return True


def attention(name: str) -> bool:
    """Those of attention, to the decoder's own tokens and to the encoder's."""
    return "attn" in name


def networks(name: str) -> bool:
    """The feed-forward networks."""
    return ".fc" in name


CHOICES: Mapping[str, Chosen] = {
    "all": everywhere,
    "attention": attention,
    "feed-forward": networks,
}


def prepared() -> Bench:
    """The committed model and the first held-out sentences of each language."""
    model = MarianMTModel.from_pretrained(recipe.FOLDER, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(recipe.FOLDER)
    pairs = translations(recipe.LANGUAGES, "test")
    held_out = [
        pair
        for language in recipe.LANGUAGES
        for pair in [pair for pair in pairs if pair.language == language][:EACH]
    ]
    return Bench(model, tokenizer, held_out)


HEADER = ("layers", "ranks", "parameters kept", "trained", "BLEU", "chrF")


def rows(bench: Bench, *, train: bool) -> Iterator[tuple[str, ...]]:
    """The lines of the table, one thing varied at a time."""
    yield "none", "–", "100%", "no", *_figures(bench.score(bench.model))
    for tenths in TENTHS:
        one = f"one rank, {10 * tenths} %", one_rank(tenths)
        for layers in CHOICES:
            yield _row(bench, layers, one)
        yield _row(bench, "all", (f"one share, {10 * tenths} %", one_share(tenths)))
    if train:
        yield _row(bench, "all", one, train=True)


def _row(
    bench: Bench, layers: str, named: tuple[str, Ranks], *, train: bool = False
) -> tuple[str, ...]:
    name, ranks = named
    model, kept = factored(bench.model, ranks, CHOICES[layers])
    if train:
        model = trained(model, bench.tokenizer)
    effort = f"{STEPS} steps" if train else "no"
    found = (layers, name, f"{kept:.0%}", effort, *_figures(bench.score(model)))
    logger.info(" | ".join(found))
    return found


def _figures(score: TranslationScore) -> tuple[str, str]:
    return f"{score.bleu:.2f}", f"{score.chrf:.2f}"


def page(*, train: bool) -> str:
    """The document; with a trained row where ``train``."""
    bench = prepared()
    about = f"""\
# What makes the small translation model break

Made by `make translation-causes`. The question is left by [reproduction.md](reproduction.md),
section 2: the document's translations are whole at 40 % of the parameters, those of
`gettext-marian` break below 80 %.

Linear layers of encoder and decoder become truncated SVDs. *One rank* is the document's way: the
same for all layers, 340 of a width of {THEIR_WIDTH} for its 100 %, here the same share of the
width; *one share* gives each layer the same share of its parameters. Parameters kept are those of
the layers that are factored. Means over five languages of {EACH} held-out sentences each, greedy
search. `TRAIN=1` adds a row with {STEPS} steps of AdamW on the sentences that the model learned
from, all weights, about {recipe.BATCH_TOKENS:,} tokens a step.
"""
    lines = [HEADER, (":---", ":---", "---:", ":---", "---:", "---:"), *rows(bench, train=train)]
    return "\n".join([about, *(f"| {' | '.join(line)} |" for line in lines), ""])


def main() -> None:
    """Write the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, nargs="?", default=Path("docs/translation-causes.md"))
    parser.add_argument("--train", action="store_true", help="also train, which takes minutes")
    arguments = parser.parse_args()
    output: Path = arguments.output
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO)
    text = page(train=arguments.train)
    with atomic_file(output) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
