"""Tiny random Hugging Face models in the hub's folder layout.

Every parameter is jittered: fresh models have zero biases and unit scales, which exporters merge
and which hide errors.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

VOCABULARY = 100
IMAGE_SIZE = 16

_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}

_IMAGE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": IMAGE_SIZE,
    "patch_size": 4,
    "num_channels": 1,
    "num_labels": 5,
}


def bert(architecture: str = "BertModel", **config: object) -> PreTrainedModel:
    """A BERT with the head that ``architecture`` names."""
    import transformers

    settings = transformers.BertConfig(**(_TEXT | config))
    return jittered(lambda: getattr(transformers, architecture)(settings))


def distilbert() -> PreTrainedModel:
    """A DistilBERT that classifies sequences; it takes no token types."""
    import transformers

    settings = transformers.DistilBertConfig(
        vocab_size=VOCABULARY, dim=32, n_layers=2, n_heads=4, hidden_dim=64
    )
    return jittered(lambda: transformers.DistilBertForSequenceClassification(settings))


def gpt2() -> PreTrainedModel:
    """A GPT-2; its linear layers are Conv1D, hence Gemm without transB."""
    import transformers

    settings = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64
    )
    return jittered(lambda: transformers.GPT2LMHeadModel(settings))


def llama() -> PreTrainedModel:
    """A Llama: rotary positions, grouped keys and values, no biases."""
    import transformers

    settings = transformers.LlamaConfig(**_TEXT, num_key_value_heads=2)
    return jittered(lambda: transformers.LlamaForCausalLM(settings))


def t5() -> PreTrainedModel:
    """A T5: an encoder with a decoder."""
    import transformers

    settings = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=1,
        num_heads=4,
        decoder_start_token_id=0,
    )
    return jittered(lambda: transformers.T5ForConditionalGeneration(settings))


def marian(positions: int = 64) -> PreTrainedModel:
    """A Marian: an encoder with a decoder, which share their embeddings."""
    import transformers

    settings = transformers.MarianConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=positions,
        init_std=0.3,
        scale_embedding=True,  # else positions count for more than tokens
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        forced_eos_token_id=None,
    )
    model = jittered(lambda: transformers.MarianMTModel(settings))
    # With embeddings of any length the longest would win, whatever the model is given.
    embeddings = model.get_input_embeddings().weight.data
    embeddings /= embeddings.norm(dim=1, keepdim=True)
    return model


def m2m100() -> PreTrainedModel:
    """An M2M100, which NLLB is too: the first target token says the language."""
    import transformers

    settings = transformers.M2M100Config(
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=160,
        init_std=0.3,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
        decoder_start_token_id=1,
    )
    return jittered(lambda: transformers.M2M100ForConditionalGeneration(settings))


def vit(**config: object) -> PreTrainedModel:
    """A ViT that classifies, by default one-channel images of ``IMAGE_SIZE``."""
    import transformers

    settings = transformers.ViTConfig(**(_IMAGE | config))
    return jittered(lambda: transformers.ViTForImageClassification(settings))


def resnet() -> PreTrainedModel:
    """A ResNet; its configuration does not say how large an image is."""
    import transformers

    settings = transformers.ResNetConfig(
        num_channels=3, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    )
    return jittered(lambda: transformers.ResNetForImageClassification(settings))


def jittered(build: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """Build a model with weights that are always the same and nowhere trivial."""
    import torch

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = build().eval()
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def save_words(folder: Path, *special: str) -> None:
    """Save a tokenizer of the words w2, w3, … beside a model, ``special`` in place of the last."""
    import transformers

    transformers.PreTrainedTokenizerFast(
        tokenizer_object=_words(special), **_SPECIAL, additional_special_tokens=list(special)
    ).save_pretrained(folder)


def save_nllb_words(folder: Path, *languages: str) -> None:
    """The same words with a tokenizer that marks source and target language as NLLB's does."""
    import transformers

    transformers.NllbTokenizerFast(
        tokenizer_object=_words(languages),
        **_SPECIAL,
        **dict.fromkeys(("bos_token", "sep_token", "cls_token"), "</s>"),
        src_lang=languages[0],
        additional_special_tokens=list(languages),
    ).save_pretrained(folder)


_SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "w2"}


def _words(special: tuple[str, ...]) -> Tokenizer:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    last = VOCABULARY - len(special)
    words = ["<pad>", "</s>", *(f"w{number}" for number in range(2, last)), *special]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer


def save(model: PreTrainedModel, folder: Path) -> Path:
    """Save configuration and safetensors weights into ``folder``."""
    model.save_pretrained(folder, safe_serialization=True)
    return folder
