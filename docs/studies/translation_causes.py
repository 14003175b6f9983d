"""What makes a small translation model break: ``python -m studies.translation_causes``.

The linear layers of a model's encoder and decoder become truncated SVDs, in PyTorch, and the same
held-out sentences are translated greedily. From one model, the *twin*, one thing is varied at a
time:

- the model: its optimizer, width and depth, and the direction of the translation;
- how ranks are given: one rank for every layer, as the document has it (its 34 to 340 of a width of
  512, here the same share of the width), or the same share of the parameters of each;
- which layers: attention or feed-forward networks;
- whether all weights are trained afterwards, on the sentences that the model learned from.

Models of which there is no folder are trained first (:mod:`models.marian`); with a GPU that takes
minutes. What was measured of a model is kept in ``docs/translation-causes``, a file each; the page
is written from these.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import MarianMTModel, PreTrainedTokenizerFast

from compress_onnx.pipeline.data.pairs import SentencePair
from compress_onnx.pipeline.files.atomic import atomic_file
from compress_onnx.pipeline.runtime.environment import environment
from models import marian

PAGE = Path(__file__).parents[1] / "translation-causes.md"
RESULTS = PAGE.with_suffix("")
MODELS = Path(__file__).parents[2] / "build" / "translation-causes"
"""Takes the models that the repository has not."""

TWIN: marian.Setup = importlib.import_module("models.gettext-marian-en.train").SETUP
SMALL: marian.Setup = importlib.import_module("models.gettext-marian.train").SETUP


def _own(name: str, setup: marian.Setup) -> marian.Setup:
    return replace(setup, folder=MODELS / name)


SETUPS: Mapping[str, marian.Setup] = {
    "twin": TWIN,
    "by Muon": _own("muon", replace(TWIN, optimizer="muon", rate=2e-3)),
    "small": _own("small", replace(TWIN, width=192, encoder_layers=3, decoder_layers=2)),
    "wide": _own(
        "wide", replace(TWIN, width=512, heads=8, encoder_layers=6, decoder_layers=6, rate=5e-4)
    ),
    "out of English": _own(
        "out", replace(TWIN, pairs=SMALL.pairs, prompt=SMALL.prompt, tokens=SMALL.tokens)
    ),
    "gettext-marian": SMALL,
}
"""The twin, one thing of it varied at a time, and the model of ``models/gettext-marian.yaml``."""

EACH = 100
"""Sentences of each language."""
EPOCHS, WARMUP = 2, 50
"""Of training afterwards: AdamW at half of the rate that made the model."""
THEIR_WIDTH, THEIR_STEP = 512, 34
"""The document's ranks are tenths of 340, that of all parameters of an encoder layer 512 wide."""
TENTHS = (3, 4, 5, 7, 10)
TRAINED = (3, 4, 5, 10)

logger = logging.getLogger(__name__)

Chosen = Callable[[str], bool]
Ranks = Callable[[nn.Linear], int]


@dataclass(frozen=True)
class Row:
    """What was left of a model.

    Attributes:
        layers: which were factored; ``none`` is the original.
        ranks: ``one rank`` or ``one share``.
        tenths: of the document's largest rank, or of the parameters.
        kept: of the parameters of the layers that were factored.
        steps: of training afterwards.
        bleu, chrf: means over the languages.
    """

    layers: str
    ranks: str
    tenths: int
    kept: float
    steps: int
    bleu: float
    chrf: float


@dataclass(frozen=True)
class Bench:
    """A model, its tokenizer, and the sentences."""

    setup: marian.Setup
    model: MarianMTModel
    tokenizer: PreTrainedTokenizerFast
    held_out: Sequence[SentencePair]

    @cached_property
    def lessons(self) -> list[marian.Example]:
        """What the model learned from."""
        return marian.encode(self.setup, self.setup.pairs("train"), self.tokenizer)

    def score(self, model: MarianMTModel) -> tuple[float, float]:
        """BLEU and chrF, means over the languages, of what ``model`` makes of the sentences."""
        texts = [self.setup.prompt(pair) for pair in self.held_out]
        found = marian.translate(model, self.tokenizer, texts)
        mean = marian.scores(self.held_out, found)["mean"]
        return mean.bleu, mean.chrf


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


RANKS: Mapping[str, Callable[[int], Ranks]] = {"one rank": one_rank, "one share": one_share}


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


def trained(bench: Bench, model: MarianMTModel) -> int:
    """Train all of ``model`` in place on what it once learned from; returns the steps."""
    setup = bench.setup
    generator = torch.Generator().manual_seed(0)
    batches = [
        batch
        for _ in range(EPOCHS)
        for batch in marian.batches(bench.lessons, setup.batch_tokens, generator)
    ]
    total = len(batches)
    optimizer = torch.optim.AdamW(
        model.parameters(), setup.rate / 2, (0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP, (total - step) / total)
    )
    torch.manual_seed(0)
    model.train()
    for batch in batches:
        loss = marian.loss_of(model, batch, marian.LABEL_SMOOTHING)
        model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    return total


def prepared(setup: marian.Setup) -> Bench:
    """The model, trained where its folder has none, and its first held-out sentences."""
    if not (setup.folder / "model.safetensors").is_file():
        setup.folder.mkdir(parents=True, exist_ok=True)
        marian.run(setup)
    model, tokenizer = marian.load(setup.folder)
    pairs = setup.pairs("test")
    held_out = [
        pair
        for language in setup.languages
        for pair in [pair for pair in pairs if pair.language == language][:EACH]
    ]
    return Bench(setup, model, tokenizer, held_out)


def rows(bench: Bench, *, train: bool) -> Iterator[Row]:
    """What is measured of a model, one thing varied at a time; trained, too, where ``train``."""
    yield Row("none", "", 10, 1.0, 0, *bench.score(bench.model))
    for tenths in TENTHS:
        for ranks in RANKS:
            yield _row(bench, "all", ranks, tenths)
    for layers in ("attention", "feed-forward"):
        yield _row(bench, layers, "one rank", 5)
    for tenths in TRAINED if train else ():
        yield _row(bench, "all", "one rank", tenths, train=True)


def _row(bench: Bench, layers: str, ranks: str, tenths: int, *, train: bool = False) -> Row:
    model, kept = factored(bench.model, RANKS[ranks](tenths), CHOICES[layers])
    steps = trained(bench, model) if train else 0
    row = Row(layers, ranks, tenths, kept, steps, *bench.score(model))
    logger.info("%s", row)
    return row


def measure(name: str, *, train: bool) -> None:
    """Measure the model of that name, and keep what was found; ``train``: see :func:`rows`."""
    setup = SETUPS[name]
    bench = prepared(setup)
    found = {
        "model": name,
        "parameters": bench.model.num_parameters(),
        "device": _device_name(),
        "rows": [asdict(row) for row in rows(bench, train=train)],
    }
    RESULTS.mkdir(exist_ok=True)
    with atomic_file(_result(name)) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    machine = environment()
    return f"{machine.processor}, {machine.cores} cores"


def _result(name: str) -> Path:
    return RESULTS / f"{name.lower().replace(' ', '-')}.json"


COLUMNS = ("30 %", "40 %", "50 %", "70 %", "100 %")


def page(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The lines of the document.

    Args:
        found: what :func:`measure` kept, by model.
    """
    yield f"""\
# What makes a small translation model break

Made by `make translation-causes`. `ONLY=twin` measures one model again, `TRAIN=1` also what is
trained afterwards, and without `ONLY` all models; those that are not in the repository are trained
first, which takes minutes with a GPU and hours without. The question is left by
[reproduction.md](reproduction.md), section 2: the document's translations are whole at 40 % of the
parameters.

Linear layers of encoder and decoder become truncated SVDs. *One rank* is the document's way: the
same for all layers, 340 of a width of {THEIR_WIDTH} for its 100 %, here the same share of the
width; *one share* gives each layer the same share of its parameters. BLEU is a mean over five
languages, {EACH} held-out sentences each, greedy search. *Trained* is {EPOCHS} epochs of AdamW on
the sentences that the model learned from, all weights, after truncation.

The *twin* is `models/gettext-marian-en`, {TWIN.width} wide with {TWIN.encoder_layers} +
{TWIN.decoder_layers} layers, moved by AdamW, into English. The others are trained alike but for
what their name says: *by Muon*; *small*, {SETUPS["small"].width} wide with
{SETUPS["small"].encoder_layers} + {SETUPS["small"].decoder_layers} layers; *wide*,
{SETUPS["wide"].width} wide with {SETUPS["wide"].encoder_layers} + {SETUPS["wide"].decoder_layers}
layers; *out of English*, into five languages. `gettext-marian` is the model of that recipe: small,
by Muon, out of English, trained for less long. Models without a row were not measured.
"""
    for title, ranks, train in TABLES:
        yield f"{title}:"
        yield ""
        yield f"| model | parameters | original | {' | '.join(COLUMNS)} |"
        yield f"|:---|---:|---:|{'---:|' * len(COLUMNS)}"
        for name, each in found.items():
            yield _line(name, each, ranks, train=train)
        yield ""
    yield "One rank at 50 %, nothing trained, by the layers that are factored:"
    yield ""
    yield "| model | all | attention | feed-forward |"
    yield "|:---|---:|---:|---:|"
    for name, each in found.items():
        cells = [_cell(_found(each, layers, "one rank", 5, train=False)) for layers in CHOICES]
        yield f"| {name} | {' | '.join(cells)} |"
    yield ""
    devices = dict.fromkeys(each["device"] for each in found.values())
    yield f"Measured on {', '.join(devices)}."


TABLES = (
    ("One rank for every layer, nothing trained", "one rank", False),
    ("One share of the parameters of each layer, nothing trained", "one share", False),
    ("One rank for every layer, trained afterwards", "one rank", True),
)


def _line(name: str, found: Mapping[str, Any], ranks: str, *, train: bool) -> str:
    cells = []
    for tenths in TENTHS:
        row = _found(found, "all", ranks, tenths, train=train)
        cells.append(f"{row.bleu:.1f}" if row else "–")
    size = f"{found['parameters'] / 1e6:.1f} M"
    return f"| {name} | {size} | {_original(found).bleu:.1f} | {' | '.join(cells)} |"


def _cell(row: Row | None) -> str:
    return f"{row.bleu:.1f} at {row.kept:.0%} of them" if row else "–"


def _original(found: Mapping[str, Any]) -> Row:
    return Row(**found["rows"][0])


def _found(
    found: Mapping[str, Any], layers: str, ranks: str, tenths: int, *, train: bool
) -> Row | None:
    for each in found["rows"]:
        row = Row(**each)
        if (row.layers, row.ranks, row.tenths) == (layers, ranks, tenths) and train == (
            row.steps > 0
        ):
            return row
    return None


def main() -> None:
    """Measure what is asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=SETUPS, help="measure this model")
    parser.add_argument(
        "--train", action="store_true", help="also train afterwards; an hour a model without a GPU"
    )
    arguments = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO)
    for name in [arguments.only] if arguments.only else SETUPS if arguments.train else ():
        measure(name, train=arguments.train)
    found = {
        name: json.loads(_result(name).read_text(encoding="utf-8"))
        for name in SETUPS
        if _result(name).is_file()
    }
    with atomic_file(PAGE) as temporary:
        temporary.write_text("\n".join(page(found)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
