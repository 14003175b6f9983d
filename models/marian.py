"""Train small Marian models on catalogue messages: what the folders' ``train.py`` share.

A model is described by a :class:`Setup`. It runs on a GPU where PyTorch has one, else on the CPU,
with products of bfloat16 where these are faster. Progress is saved every few minutes: after an
interruption the same command goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
from compress_onnx.pipeline.results import TranslationScore
from compress_onnx.pipeline.runtime.processor import instruction_sets
from models.data.translations import Split

SEED = 0
MAX_TOKENS = 64
COOLDOWN_SHARE = 0.4
LABEL_SMOOTHING = 0.1
CHECKPOINT_S = 120.0
GENERATED_AT_ONCE = 256

Stateful = torch.nn.Module | torch.optim.Optimizer | torch.optim.lr_scheduler.LRScheduler
_RESIDUAL = ("v_proj.weight", "out_proj.weight", "fc2.weight")
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"


@dataclass(frozen=True)
class Setup:
    """A model and how it is trained.

    Attributes:
        folder: takes weights, configuration and tokenizer.
        pairs: the sentences of a split.
        prompt: what the model reads of a pair.
        languages: of the pairs.
        tokens: special tokens beside padding, end and unknown.
        vocabulary: tokens in all.
        width, heads, encoder_layers, decoder_layers: of the model; its networks are four times as
            wide.
        dropout: inside the layers.
        optimizer: of the layers' matrices; all else is moved by AdamW.
        rate: the learning rate of AdamW.
        epochs: how often each pair is seen.
        batch_tokens: padded target tokens of a step.
        warmup_steps: until the rate is reached.
        residual_gain: scales what the matrices that write into the residual stream begin with;
            where norms follow the residuals, AdamW needs little of them to find its way.
    """

    folder: Path
    pairs: Callable[[Split], list[SentencePair]]
    prompt: Callable[[SentencePair], str]
    languages: Sequence[str]
    tokens: Sequence[str]
    vocabulary: int
    width: int
    heads: int
    encoder_layers: int
    decoder_layers: int
    dropout: float
    optimizer: Literal["muon", "adamw"]
    rate: float
    epochs: int
    batch_tokens: int
    warmup_steps: int = 200
    residual_gain: float = 1.0


@dataclass(frozen=True)
class Example:
    """The token ids of one pair, each side with the end token."""

    source: torch.Tensor
    target: torch.Tensor


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train_tokenizer(setup: Setup, pairs: Sequence[SentencePair]) -> PreTrainedTokenizerFast:
    """A byte-pair vocabulary that all languages share, learned from both sides of ``pairs``."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=setup.vocabulary,
        special_tokens=[PAD, END, UNKNOWN, *setup.tokens],
        show_progress=False,
    )
    # Each English sentence once, or it would count as often as there are languages.
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
        additional_special_tokens=list(setup.tokens),
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,  # French has one before a colon
    )


def build_model(setup: Setup, tokenizer: PreTrainedTokenizerFast) -> MarianMTModel:
    """An encoder, a decoder, one embedding table; random weights."""
    config = MarianConfig(
        vocab_size=len(tokenizer),
        d_model=setup.width,
        encoder_layers=setup.encoder_layers,
        decoder_layers=setup.decoder_layers,
        encoder_attention_heads=setup.heads,
        decoder_attention_heads=setup.heads,
        encoder_ffn_dim=4 * setup.width,
        decoder_ffn_dim=4 * setup.width,
        activation_function="relu",
        dropout=setup.dropout,
        attention_dropout=0.0,
        init_std=setup.width**-0.5,
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
    model = MarianMTModel(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(_RESIDUAL):
                weight.mul_(setup.residual_gain)
    return model


def encode(
    setup: Setup, pairs: Sequence[SentencePair], tokenizer: PreTrainedTokenizerFast
) -> list[Example]:
    """The pairs as token ids, without those of more than ``MAX_TOKENS`` tokens."""
    sources = tokenizer([setup.prompt(pair) for pair in pairs])["input_ids"]
    targets = tokenizer([pair.target for pair in pairs])["input_ids"]
    return [
        Example(torch.tensor(source), torch.tensor(target))
        for source, target in zip(sources, targets, strict=True)
        if max(len(source), len(target)) <= MAX_TOKENS
    ]


def batches(
    examples: Sequence[Example], tokens: int, generator: torch.Generator
) -> Iterator[list[Example]]:
    """All examples in random batches of like lengths, of ``tokens`` padded target tokens."""
    noise = torch.rand(len(examples), generator=generator).tolist()
    order = sorted(
        range(len(examples)),
        key=lambda i: (len(examples[i].target), len(examples[i].source) + noise[i]),
    )
    found, batch = [], []
    for row in order:
        batch.append(examples[row])
        if len(batch) * len(batch[-1].target) >= tokens:
            found.append(batch)
            batch = []
    found.append(batch)
    for index in torch.randperm(len(found), generator=generator).tolist():
        if found[index]:
            yield found[index]


def loss_of(model: MarianMTModel, batch: Sequence[Example], smoothing: float) -> torch.Tensor:
    """Mean cross entropy over the target tokens of ``batch``."""
    pad, place = model.config.pad_token_id, model.device
    source, target = (
        pad_sequence(sides, batch_first=True, padding_value=pad).to(place)
        for sides in ([e.source for e in batch], [e.target for e in batch])
    )
    start = torch.full_like(target[:, :1], model.config.decoder_start_token_id)
    half = place.type == "cuda" or "AMX bf16" in instruction_sets()
    with torch.autocast(place.type, torch.bfloat16, enabled=half):
        hidden = model.model(
            input_ids=source,
            attention_mask=(source != pad).long(),
            decoder_input_ids=torch.cat([start, target[:, :-1]], dim=1),
            use_cache=False,
        ).last_hidden_state
        real = target != pad
        logits = model.lm_head(hidden[real]) + model.final_logits_bias
    return functional.cross_entropy(logits.float(), target[real], label_smoothing=smoothing)


def learning_rate_factor(step: int, total: int, warmup: int) -> float:
    """Linear warm-up, and over the last part of the steps linearly down to zero."""
    return min(1.0, (step + 1) / warmup, (total - step) / (COOLDOWN_SHARE * total))


def make_optimizers(setup: Setup, model: MarianMTModel) -> tuple[torch.optim.Optimizer, ...]:
    """AdamW; with Muon for the matrices of the layers, which needs half as many steps."""
    layers = [p for name, p in model.named_parameters() if ".layers." in name]
    matrices = [p for p in layers if p.ndim == 2] if setup.optimizer == "muon" else []
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen and p.requires_grad]
    adamw = torch.optim.AdamW(others, lr=setup.rate, betas=(0.9, 0.98), weight_decay=0.01)
    if not matrices:
        return (adamw,)
    return torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.01), adamw


def train(
    setup: Setup, model: MarianMTModel, examples: list[Example], validation: list[Example]
) -> None:
    """Train ``model`` in place, going on from the checkpoint where there is one."""
    generator = torch.Generator().manual_seed(SEED)
    plan = [
        batch
        for _ in range(setup.epochs)
        for batch in batches(examples, setup.batch_tokens, generator)
    ]
    optimizers = make_optimizers(setup, model)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, len(plan), setup.warmup_steps)
        )
        for optimizer in optimizers
    ]
    parts: list[Stateful] = [model, *optimizers, *schedules]
    checkpoint = setup.folder / "checkpoint.pt"
    first = load_checkpoint(checkpoint, parts)
    start, saved, losses = time.monotonic(), time.monotonic(), []
    for step, batch in enumerate(plan[first:], first + 1):
        model.train()
        loss = loss_of(model, batch, LABEL_SMOOTHING)
        model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        losses.append(loss.detach())
        if step % 100 == 0:
            mean = float(torch.stack(losses).mean())
            print(
                f"step {step}/{len(plan)}, {time.monotonic() - start:.0f} s, loss {mean:.3f}",
                flush=True,
            )
            losses = []
        if step % 1000 == 0:
            print(f"step {step}: perplexity on validation {perplexity(model, validation):.2f}")
        if time.monotonic() - saved > CHECKPOINT_S:
            save_checkpoint(checkpoint, parts, step)
            saved = time.monotonic()


def save_checkpoint(path: Path, parts: Sequence[Stateful], step: int) -> None:
    """Keep everything that training goes on from."""
    temporary = path.with_suffix(".tmp")
    torch.save({"step": step, "parts": [part.state_dict() for part in parts]}, temporary)
    temporary.replace(path)


def load_checkpoint(path: Path, parts: Sequence[Stateful]) -> int:
    """Put ``parts`` where they were; the number of steps taken so far."""
    if not path.exists():
        return 0
    states = torch.load(path, weights_only=True)
    for part, state in zip(parts, states["parts"], strict=True):
        part.load_state_dict(state)
    return int(states["step"])


@torch.inference_mode()
def perplexity(model: MarianMTModel, examples: Sequence[Example]) -> float:
    """Exponential of the mean cross entropy of a token."""
    model.eval()
    found = list(batches(examples, 2500, torch.Generator().manual_seed(SEED)))
    tokens = torch.tensor([float(sum(len(e.target) for e in batch)) for batch in found])
    losses = torch.stack([loss_of(model, batch, 0.0).cpu() for batch in found])
    return float(torch.exp((losses * tokens).sum() / tokens.sum()))


def save(model: MarianMTModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Store float16 weights, a configuration that loads them as float32, and the tokenizer."""
    model.half().save_pretrained(folder)
    model.config.dtype = torch.float32
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    GenerationConfig(
        max_new_tokens=MAX_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)


def load(folder: Path) -> tuple[MarianMTModel, PreTrainedTokenizerFast]:
    """What :func:`save` stored, computed in float32."""
    model = MarianMTModel.from_pretrained(folder, dtype=torch.float32).eval()
    return model.to(device()), PreTrainedTokenizerFast.from_pretrained(folder)


@torch.inference_mode()
def translate(
    model: MarianMTModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], beams: int = 1
) -> list[str]:
    """What ``model`` makes of what it reads."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    found = [""] * len(texts)
    for start in range(0, len(order), GENERATED_AT_ONCE):
        rows = order[start : start + GENERATED_AT_ONCE]
        inputs = tokenizer(
            [texts[row] for row in rows], padding=True, truncation=True, return_tensors="pt"
        ).to(model.device)
        ids = model.generate(**inputs, num_beams=beams, max_new_tokens=MAX_TOKENS)
        decoded = tokenizer.batch_decode(ids, skip_special_tokens=True)
        for row, text in zip(rows, decoded, strict=True):
            found[row] = text
    return found


def scores(
    pairs: Sequence[SentencePair], translations: Sequence[str]
) -> Mapping[str, TranslationScore]:
    """BLEU and chrF by language, and their means (``mean``)."""
    found = {}
    for language in dict.fromkeys(pair.language for pair in pairs):
        rows = [row for row, pair in enumerate(pairs) if pair.language == language]
        references = [pairs[row].target for row in rows]
        found[language] = score_translations([translations[row] for row in rows], references)
    return {**found, "mean": mean_score(found.values())}


def run(setup: Setup) -> None:
    """Train, save and measure."""
    torch.manual_seed(SEED)
    pairs = setup.pairs("train")
    tokenizer = train_tokenizer(setup, pairs)
    model = build_model(setup, tokenizer).to(device())
    print(f"{len(pairs):,} pairs to train on, {model.num_parameters():,} parameters")
    held_out = encode(setup, setup.pairs("validation"), tokenizer)
    train(setup, model, encode(setup, pairs, tokenizer), held_out)
    save(model, tokenizer, setup.folder)
    (setup.folder / "checkpoint.pt").unlink(missing_ok=True)
    print(f"model.safetensors: {(setup.folder / 'model.safetensors').stat().st_size:,} bytes")
    stored, tokenizer = load(setup.folder)
    measured: tuple[tuple[Split, int], ...] = (("validation", 1), ("test", 1), ("test", 4))
    for split, beams in measured:
        told = setup.pairs(split)
        found = translate(stored, tokenizer, [setup.prompt(pair) for pair in told], beams)
        for name, score in scores(told, found).items():
            print(
                f"{split}, {beams} beams, {name}: {score.sentences} sentences, "
                f"BLEU {score.bleu:.2f}, chrF {score.chrf:.2f}"
            )
