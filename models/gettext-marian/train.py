"""Train the small translation model of the gettext recipe and save it beside this file.

    python -m models.gettext-marian.train

One Marian model translates English into five languages; a token in front of the sentence says
which. It learns from the messages of the packages in ``packages.txt``, which are fetched, read and
not kept. Progress is saved every few minutes: after an interruption the same command goes on.

Validation and test sentences share none with training, and the test sentences were read once, at
the end: BLEU 29.3 greedy and 31.8 with 4 beams (chrF 55.3 and 57.7), means over the languages,
after 41 minutes on one core. Weights are stored in float16 to keep the repository small; BLEU is
measured on what was stored, computed in float32.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, MarianConfig, MarianMTModel, PreTrainedTokenizerFast

from compress_onnx.pipeline.data.pairs import SentencePair
from compress_onnx.pipeline.measure.metrics.bleu import mean_score, score_translations
from models.data.translations import language_token, tagged, translations

FOLDER = Path(__file__).parent
CHECKPOINT = FOLDER / "checkpoint.pt"
LANGUAGES = ("de", "es", "fr", "it", "pt")

SEED = 0
VOCABULARY = 4000
MAX_TOKENS = 64
EPOCHS = 8
BATCH_TOKENS = 2500
MATRIX_RATE = 0.02
LEARNING_RATE = 2e-3
WARMUP_STEPS = 200
COOLDOWN_SHARE = 0.4
LABEL_SMOOTHING = 0.1
CHECKPOINT_S = 120.0

Stateful = torch.nn.Module | torch.optim.Optimizer | torch.optim.lr_scheduler.LRScheduler
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"


@dataclass(frozen=True)
class Example:
    """The token ids of one pair, each side with the end token."""

    source: torch.Tensor
    target: torch.Tensor


def train_tokenizer(pairs: list[SentencePair]) -> PreTrainedTokenizerFast:
    """A byte-pair vocabulary that all languages share, learned from both sides of ``pairs``."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokens = [language_token(language) for language in LANGUAGES]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[PAD, END, UNKNOWN, *tokens], show_progress=False
    )
    # Each English sentence once, or it would count five times.
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.source, pair.target)))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=tokens,
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,  # French has one before a colon
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> MarianMTModel:
    """An encoder of three layers, a decoder of two, one embedding table; random weights."""
    config = MarianConfig(
        vocab_size=len(tokenizer),
        d_model=192,
        encoder_layers=3,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=768,
        decoder_ffn_dim=768,
        activation_function="relu",
        dropout=0.05,
        attention_dropout=0.0,
        init_std=192**-0.5,
        scale_embedding=True,
        share_encoder_decoder_embeddings=True,
        tie_word_embeddings=True,
        max_position_embeddings=2 * MAX_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        forced_eos_token_id=None,
        # On batches of short sentences twice as fast as PyTorch's own on a CPU.
        attn_implementation="eager",
    )
    return MarianMTModel(config)


def encode(pairs: list[SentencePair], tokenizer: PreTrainedTokenizerFast) -> list[Example]:
    """The pairs as token ids, without those of more than ``MAX_TOKENS`` tokens."""
    sources = tokenizer([tagged(pair) for pair in pairs])["input_ids"]
    targets = tokenizer([pair.target for pair in pairs])["input_ids"]
    return [
        Example(torch.tensor(source), torch.tensor(target))
        for source, target in zip(sources, targets, strict=True)
        if max(len(source), len(target)) <= MAX_TOKENS
    ]


def batches(examples: list[Example], generator: torch.Generator) -> Iterator[list[Example]]:
    """All examples in random batches of like lengths, of ``BATCH_TOKENS`` padded target tokens."""
    noise = torch.rand(len(examples), generator=generator).tolist()
    order = sorted(
        range(len(examples)),
        key=lambda i: (len(examples[i].target), len(examples[i].source) + noise[i]),
    )
    found, batch = [], []
    for row in order:
        batch.append(examples[row])
        if len(batch) * max(len(e.target) for e in batch[-1:]) >= BATCH_TOKENS:
            found.append(batch)
            batch = []
    found.append(batch)
    for index in torch.randperm(len(found), generator=generator).tolist():
        if found[index]:
            yield found[index]


def loss_of(model: MarianMTModel, batch: list[Example], smoothing: float) -> torch.Tensor:
    """Mean cross entropy over the target tokens of ``batch``."""
    pad = model.config.pad_token_id
    source = pad_sequence([e.source for e in batch], batch_first=True, padding_value=pad)
    target = pad_sequence([e.target for e in batch], batch_first=True, padding_value=pad)
    start = torch.full_like(target[:, :1], model.config.decoder_start_token_id)
    hidden = model.model(
        input_ids=source,
        attention_mask=(source != pad).long(),
        decoder_input_ids=torch.cat([start, target[:, :-1]], dim=1),
        use_cache=False,
    ).last_hidden_state
    real = target != pad
    logits = model.lm_head(hidden[real]) + model.final_logits_bias
    return functional.cross_entropy(logits.float(), target[real], label_smoothing=smoothing)


def learning_rate_factor(step: int, total: int) -> float:
    """Linear warm-up, and over the last part of the steps linearly down to zero."""
    return min(1.0, (step + 1) / WARMUP_STEPS, (total - step) / (COOLDOWN_SHARE * total))


def make_optimizers(model: MarianMTModel) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices of the layers, which needs half as many steps; Adam for the rest."""
    layers = [p for name, p in model.named_parameters() if ".layers." in name]
    matrices = [p for p in layers if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen and p.requires_grad]
    return (
        torch.optim.Muon(matrices, lr=MATRIX_RATE, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01),
    )


def train(model: MarianMTModel, examples: list[Example], validation: list[Example]) -> None:
    """Train ``model`` in place, going on from the checkpoint where there is one."""
    generator = torch.Generator().manual_seed(SEED)
    plan = [batch for _ in range(EPOCHS) for batch in batches(examples, generator)]
    optimizers = make_optimizers(model)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, len(plan))
        )
        for optimizer in optimizers
    ]
    parts = [model, *optimizers, *schedules]
    first = load_checkpoint(parts)
    start, saved, losses = time.monotonic(), time.monotonic(), []
    for step, batch in enumerate(plan[first:], first + 1):
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, batch, LABEL_SMOOTHING)
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in (*optimizers, *schedules):
            part.step()
        losses.append(loss.item())
        if step % 100 == 0:
            mean = sum(losses) / len(losses)
            print(f"step {step}/{len(plan)}, {time.monotonic() - start:.0f} s, loss {mean:.3f}")
            losses = []
        if step % 1000 == 0:
            print(f"step {step}: perplexity on validation {perplexity(model, validation):.2f}")
        if time.monotonic() - saved > CHECKPOINT_S:
            save_checkpoint(parts, step)
            saved = time.monotonic()


def save_checkpoint(parts: list[Stateful], step: int) -> None:
    """Keep everything that training goes on from."""
    temporary = CHECKPOINT.with_suffix(".tmp")
    torch.save({"step": step, "parts": [part.state_dict() for part in parts]}, temporary)
    temporary.replace(CHECKPOINT)


def load_checkpoint(parts: list[Stateful]) -> int:
    """Put ``parts`` where they were; the number of steps taken so far."""
    if not CHECKPOINT.exists():
        return 0
    states = torch.load(CHECKPOINT, weights_only=True)
    for part, state in zip(parts, states["parts"], strict=True):
        part.load_state_dict(state)
    return int(states["step"])


@torch.inference_mode()
def perplexity(model: MarianMTModel, examples: list[Example]) -> float:
    """Exponential of the mean cross entropy of a token."""
    model.eval()
    found = list(batches(examples, torch.Generator().manual_seed(SEED)))
    tokens = torch.tensor([float(sum(len(e.target) for e in batch)) for batch in found])
    losses = torch.stack([loss_of(model, batch, 0.0) for batch in found])
    return float(torch.exp((losses * tokens).sum() / tokens.sum()))


def save(model: MarianMTModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Store float16 weights, a configuration that loads them as float32, and the tokenizer."""
    model.half().save_pretrained(FOLDER)
    model.config.dtype = torch.float32
    model.config.save_pretrained(FOLDER)
    tokenizer.save_pretrained(FOLDER)
    GenerationConfig(
        max_new_tokens=MAX_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    ).save_pretrained(FOLDER)


@torch.inference_mode()
def translate(pairs: list[SentencePair], beams: int) -> list[str]:
    """What the stored model makes of the sources of ``pairs``."""
    model = MarianMTModel.from_pretrained(FOLDER, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(FOLDER)
    order = sorted(range(len(pairs)), key=lambda row: len(pairs[row].source))
    found = [""] * len(pairs)
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        inputs = tokenizer(
            [tagged(pairs[row]) for row in rows],
            padding=True, truncation=True, return_tensors="pt",
        )  # fmt: skip
        ids = model.generate(**inputs, num_beams=beams)
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        for row, text in zip(rows, texts, strict=True):
            found[row] = text
    return found


def measure(split: str, beams: int) -> None:
    """Print BLEU and chrF of the stored model by language, and their means."""
    pairs = translations(LANGUAGES, split)
    found = translate(pairs, beams)
    scores = {}
    for language in LANGUAGES:
        rows = [row for row, pair in enumerate(pairs) if pair.language == language]
        references = [pairs[row].target for row in rows]
        scores[language] = score_translations([found[row] for row in rows], references)
    for name, score in {**scores, "mean": mean_score(scores.values())}.items():
        print(
            f"{split}, {beams} beams, {name}: {score.sentences} sentences, "
            f"BLEU {score.bleu:.2f}, chrF {score.chrf:.2f}"
        )


def main() -> None:
    """Train, save and measure."""
    torch.manual_seed(SEED)
    pairs = translations(LANGUAGES, "train")
    tokenizer = train_tokenizer(pairs)
    model = build_model(tokenizer)
    print(f"{len(pairs):,} pairs to train on, {model.num_parameters():,} parameters")
    held_out = translations(LANGUAGES, "validation")
    train(model, encode(pairs, tokenizer), encode(held_out, tokenizer))
    save(model, tokenizer)
    CHECKPOINT.unlink(missing_ok=True)
    print(f"model.safetensors: {(FOLDER / 'model.safetensors').stat().st_size:,} bytes")
    measure("validation", beams=1)
    measure("test", beams=1)
    measure("test", beams=4)


if __name__ == "__main__":
    main()
