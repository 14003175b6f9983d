"""Full-size models of random weights: how fast, how large, how much memory; never how accurate.

==================  ================================================================================
``vit-base``        ViT-B/16: 197 positions of 768, 12 layers
``bert-large``      24 layers of 1,024, 4,096 neurons, at 128 and 384 tokens
``marian-decoder``  one token after 64 others: 6 layers of 512, 2,048 neurons, 58,101 words
==================  ================================================================================

The models are made from their libraries' configurations and come in by the project's own export.
Of the neurons, the first ones stay: nothing is learned that random weights could teach.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.factorization.neurons import Folded
from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass
from compress_onnx.graph_passes.rewriting.embeddings import EmbeddingsPass
from compress_onnx.graph_passes.rewriting.neurons import NeuronsPass
from compress_onnx.graph_passes.rewriting.unfused_norms import UnfuseNormsPass
from compress_onnx.graph_passes.sites.ffn import find_ffns
from compress_onnx.pipeline.compress.integers import round_model
from compress_onnx.pipeline.export import export
from compress_onnx.pipeline.files.model_file import save_model
from compress_onnx.pipeline.files.original import Original, open_original
from compress_onnx.pipeline.recipe import SourceSpec
from compress_onnx.pipeline.runtime.inputs import (
    constants_among,
    load_structure,
    model_inputs,
    synthetic_feeds,
)
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import SessionSpec
from compress_onnx.pipeline.translate.export_parts import export_encoder_decoder
from compress_onnx.pipeline.translate.generation import DECODER_WITH_PAST
from studies.performance.rows import Row, theirs
from studies.performance.table import Line, build, memory, render, speeds

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHARE = 0.5
"""Of the neurons."""

SAMPLES = 4
"""How many made-up samples ranges are found on."""


@dataclass(frozen=True)
class Shape:
    """A kind of model, and the inputs that it is timed on.

    Attributes:
        architecture, configuration: the names of transformers' classes.
        settings: what the configuration says otherwise than by itself.
        sizes: batch and length, by how the table calls them.
    """

    architecture: str
    configuration: str
    settings: Mapping[str, Any]
    sizes: Mapping[str, tuple[int, int]]

    def model(self) -> PreTrainedModel:
        """With random weights, the same at each call."""
        import torch
        import transformers

        configuration = getattr(transformers, self.configuration)(**self.settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return getattr(transformers, self.architecture)(configuration).eval()


SHAPES: Mapping[str, Shape] = {
    "vit-base": Shape("ViTModel", "ViTConfig", {}, {"1 image": (1, 1), "8 images": (8, 1)}),
    "bert-large": Shape(
        "BertModel",
        "BertConfig",
        {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        },
        {"1×128": (1, 128), "1×384": (1, 384)},
    ),
    "marian-decoder": Shape(
        "MarianMTModel",
        "MarianConfig",
        {
            "d_model": 512,
            "encoder_layers": 6,
            "decoder_layers": 6,
            "encoder_ffn_dim": 2048,
            "decoder_ffn_dim": 2048,
            "encoder_attention_heads": 8,
            "decoder_attention_heads": 8,
            "vocab_size": 58101,
            "pad_token_id": 58100,
            "decoder_start_token_id": 58100,
            "max_position_embeddings": 512,
        },
        {"1 token": (1, 64), "8 tokens": (8, 64)},
    ),
}


def exported(shape: Shape, folder: Path) -> Path:
    """The ``.onnx`` file of ``shape``, in ``folder``."""
    checkpoint, graphs = folder / "checkpoint", folder / "graphs"
    graphs.mkdir()
    model = shape.model()
    model.save_pretrained(checkpoint)
    translates = model.config.is_encoder_decoder
    del model
    source = SourceSpec(model=str(checkpoint), task="feature-extraction")
    if translates:
        export_encoder_decoder(checkpoint, source, graphs)
        return graphs / DECODER_WITH_PAST
    return export(source, graphs, base_dir=folder).path


def made_up(model: Path, batch: int, length: int, seed: int = 0) -> dict[str, Array]:
    """Random inputs of one size."""
    inputs = model_inputs(load_structure(model))
    return synthetic_feeds(inputs, batch=batch, length=length, seed=seed)


def first_neurons(original: Original, share: float) -> ir.Model:
    """``original`` with the first of the neurons of each feed-forward network."""
    chosen = {}
    for ffn in find_ffns(original.table.sites).ffns:
        kept = np.arange(max(1, round(share * ffn.neurons)))
        weight = ffn.down.weight.array()[kept].astype(np.float64)  # [k, N]
        chosen[ffn.name] = Folded(kept, weight, np.zeros(ffn.down.out_features))
    model = original.copy()
    NeuronsPass(chosen, biases=False)(model)
    CleanupPass()(model)
    return model


def made_up_samples(path: Path, shape: Shape) -> Samples:
    """What ranges are found on."""
    _, length = next(iter(shape.sizes.values()))
    feeds = made_up(path, SAMPLES, length, seed=1)
    constants = constants_among(feeds, model_inputs(load_structure(path)))
    return Samples(feeds, origin="made-up inputs", constants=constants)


def rows(original: Original, samples: Samples) -> Iterator[Row]:
    """Few: a shape has no accuracy, and what has the same operators has the same speed."""

    def write(model: ir.Model | Original, path: Path) -> None:
        rounded = round_model(model, samples).model
        for change in EmbeddingsPass(8), CleanupPass(), UnfuseNormsPass():
            change(rounded)
        save_model(rounded, path)

    yield from theirs(original)
    yield Row("integers", lambda path: write(original, path))
    fewer = f"{SHARE:.0%} of the neurons, integers"
    yield Row(fewer, lambda path: write(first_neurons(original, SHARE), path))


def table(shape: Shape, folder: Path, rounds: int) -> Iterator[str]:
    """The lines of the tables of one shape."""
    path, spec = exported(shape, folder), SessionSpec()
    original = open_original(path)
    built = build(rows(original, made_up_samples(path, shape)), folder)
    feeds = {name: made_up(path, *size) for name, size in shape.sizes.items()}
    fast = speeds(built.paths, feeds, spec, rounds)
    largest = list(feeds.values())[-1]
    lines = [Line(n, memory(p, largest, spec), fast[n]) for n, p in built.paths.items()]
    yield from render([*lines, *built.missing], ["file", "memory"], list(feeds))
