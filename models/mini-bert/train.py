"""Train the small BERT of the mini-bert recipe on English verses and save it beside this file.

    python -m models.mini-bert.train

A masked-language model as in Devlin et al. (2019), arXiv:1810.04805, without the next-sentence
task: of each verse 30 % of the tokens are to be predicted; 80 % of those are masked, 10 % replaced
and 10 % left. Only the training split of the verses is read, also by the tokenizer, and
hyper-parameters are chosen by the training loss. Weights are stored after every epoch, in float16
to keep the repository small; the accuracy is measured on what was stored last, computed in float32,
with one word of each held-out verse masked: 0.657 of the words are among the five best guesses (the
five most frequent words: 0.193), after 21 minutes on one core.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tokenizers import BertWordPieceTokenizer
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

from compress_onnx.pipeline.data.masking import UNLABELLED
from compress_onnx.pipeline.data.sources import load_samples
from compress_onnx.pipeline.recipe import MaskedData, PythonData
from compress_onnx.pipeline.runtime.samples import Samples
from models.data.verses import verses

FOLDER = Path(__file__).parent
SEED = 0
VOCABULARY = 6000
MAX_TOKENS = 128
EPOCHS = 12
BATCH_TOKENS = 1024
LEARNING_RATE = 2e-3
WARMUP_STEPS = 300
WEIGHT_DECAY = 0.01
REPORT_STEPS = 100
PREDICTED, MASKED, REPLACED = 0.3, 0.8, 0.1


def build_tokenizer(texts: list[str]) -> BertTokenizerFast:
    """A lower-case WordPiece tokenizer of ``texts``."""
    pieces = BertWordPieceTokenizer(lowercase=True)
    pieces.train_from_iterator(texts, vocab_size=VOCABULARY, min_frequency=2, show_progress=False)
    (vocabulary,) = pieces.save_model(str(FOLDER))
    return BertTokenizerFast(vocabulary, model_max_length=MAX_TOKENS)


def build_model(tokenizer: BertTokenizerFast) -> BertForMaskedLM:
    """A BERT of 4 layers, 128 wide, with random weights; the decoder is the embedding table."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=MAX_TOKENS,
        type_vocab_size=1,
        # New masks in every epoch: too few epochs to overfit.
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )
    return BertForMaskedLM(config)


def batches(rows: list[list[int]], rng: np.random.Generator) -> Iterator[list[list[int]]]:
    """One epoch: rows of like length together, about ``BATCH_TOKENS`` a batch, in random order."""
    noisy = np.array([len(row) for row in rows]) + rng.random(len(rows)) * 4
    order, groups = np.argsort(noisy), []
    start = 0
    while start < len(order):
        size = max(1, BATCH_TOKENS // len(rows[order[start]]))
        groups.append(order[start : start + size])
        start += size
    for group in rng.permutation(len(groups)):
        yield [rows[row] for row in groups[group]]


def mask(ids: torch.Tensor, tokenizer: BertTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model sees of ``ids`` ``[B, T]``, and what it is to predict (else −100)."""
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    predicted = (torch.rand(ids.shape) < PREDICTED) & ~special
    labels = ids.masked_fill(~predicted, UNLABELLED)
    chance = torch.rand(ids.shape)
    replaced = predicted & (chance >= MASKED) & (chance < MASKED + REPLACED)
    seen = ids.masked_fill(predicted & (chance < MASKED), tokenizer.mask_token_id)
    return torch.where(replaced, torch.randint(len(tokenizer), ids.shape), seen), labels


def loss_of(
    model: BertForMaskedLM, rows: list[list[int]], tokenizer: BertTokenizerFast
) -> torch.Tensor:
    """The cross entropy of the masked tokens; the decoder only looks at those."""
    padding = tokenizer.pad_token_id
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=padding)
    seen, labels = mask(ids, tokenizer)
    hidden = model.bert(input_ids=seen, attention_mask=ids != padding).last_hidden_state
    chosen = labels != UNLABELLED
    return functional.cross_entropy(model.cls(hidden[chosen]), labels[chosen])


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - WARMUP_STEPS) / (steps - WARMUP_STEPS))))


def parameter_groups(model: BertForMaskedLM) -> list[dict[str, object]]:
    """Weight decay for matrices only, not for biases and norms."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim == 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim != 2], "weight_decay": 0.0},
    ]


def train(model: BertForMaskedLM, tokenizer: BertTokenizerFast, texts: list[str]) -> None:
    """Train ``model`` in place, and store it after every epoch."""
    rows: list[list[int]] = tokenizer(texts, truncation=True)["input_ids"]
    rng = np.random.default_rng(SEED)
    epochs = [list(batches(rows, rng)) for _ in range(EPOCHS)]
    steps = sum(map(len, epochs))
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=LEARNING_RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, steps)
    )
    start = time.perf_counter()
    for number, epoch in enumerate(epochs, start=1):
        model.train()
        losses = []
        for batch in epoch:
            loss = loss_of(model, batch, tokenizer)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            if len(losses) % REPORT_STEPS == 0:
                recent = np.mean(losses[-REPORT_STEPS:])
                print(f"epoch {number}, step {len(losses)}: loss {recent:.3f}", flush=True)
        save(model, tokenizer)
        seconds = time.perf_counter() - start
        print(f"epoch {number}/{EPOCHS}: loss {np.mean(losses):.3f}, {seconds:.0f} s", flush=True)


def save(model: BertForMaskedLM, tokenizer: BertTokenizerFast) -> None:
    """Store float16 weights, a configuration that loads them as float32, and the tokenizer."""
    half = copy.deepcopy(model).half()
    half.save_pretrained(FOLDER)
    half.config.dtype = torch.float32
    half.config.save_pretrained(FOLDER)
    tokenizer.save_pretrained(FOLDER)


def masked_verses(split: Literal["train", "validation"]) -> Samples:
    """The verses of a split with one word masked in each, as the recipe reads them."""
    sentences = PythonData(
        kind="python", loader="data/verses.py:verses", arguments={"split": split}
    )
    return load_samples(
        MaskedData(kind="masked", sentences=sentences),
        base_dir=FOLDER.parent,
        allow_code=True,
        tokenizer_dir=FOLDER,
        mask="attention_mask",
        input_names=["input_ids", "attention_mask"],
        seed=SEED,
    )


def accuracy(samples: Samples) -> float:
    """Share of the masked words that are among the stored model's five best guesses."""
    model = BertForMaskedLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    right = 0
    for batch in samples.batches(64):
        feeds = {name: torch.from_numpy(array) for name, array in batch.feeds.items()}
        labels = torch.from_numpy(batch.labels)
        with torch.inference_mode():
            guesses = model(**feeds).logits[labels != UNLABELLED].topk(5).indices
        right += int((guesses == labels[labels != UNLABELLED][:, None]).any(dim=1).sum())
    return right / len(samples)


def unigram_accuracy(train: Samples, held_out: Samples) -> float:
    """The same for five guesses that never change: the most frequent masked words of training."""
    words, counts = np.unique(train.labels[train.labels != UNLABELLED], return_counts=True)
    guesses = words[np.argsort(-counts)[:5]]
    return float(np.isin(held_out.labels[held_out.labels != UNLABELLED], guesses).mean())


def main() -> None:
    """Train, save and measure."""
    torch.manual_seed(SEED)
    texts = verses("train")
    tokenizer = build_tokenizer(texts)
    train(build_model(tokenizer), tokenizer, texts)
    size = (FOLDER / "model.safetensors").stat().st_size
    held_out = masked_verses("validation")
    print(f"model.safetensors: {size:,} bytes")
    print(f"top-5 accuracy on {len(held_out)} held-out verses: {accuracy(held_out):.4f}")
    print(f"five most frequent words: {unigram_accuracy(masked_verses('train'), held_out):.4f}")


if __name__ == "__main__":
    main()
