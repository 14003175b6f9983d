"""Export an encoder–decoder, with past key values, as the graphs that generate text together.

optimum writes an encoder, the decoder without and with past key values, and both decoders merged
into one graph that has every weight once (:mod:`pipeline.translate.generation` says what each is
called). The first three are compared with PyTorch as they are used, one after the other: the
encoder, the decoder without past for all tokens but the last, the decoder with past for that one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import ModelFileError
from compress_onnx.pipeline.export.checkpoint import (
    load_checkpoint,
    read_config,
    require_safetensors,
)
from compress_onnx.pipeline.export.onnx_file import use_onnx_file
from compress_onnx.pipeline.export.optimum_export import MAX_OPSET, export_notes, run_optimum
from compress_onnx.pipeline.export.parity import compare_with_torch
from compress_onnx.pipeline.export.probes import TEXT_AXES, text_probes
from compress_onnx.pipeline.export.tasks import Task
from compress_onnx.pipeline.export.torch_model import TorchModel
from compress_onnx.pipeline.recipe import SourceSpec
from compress_onnx.pipeline.results import ExportReport
from compress_onnx.pipeline.runtime.session import open_session, run
from compress_onnx.pipeline.translate.generation import (
    DECODER,
    DECODER_MERGED,
    DECODER_WITH_PAST,
    ENCODER,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

_TASK = Task("text2text-generation", "AutoModelForSeq2SeqLM", ("logits",), ())


@dataclass(frozen=True)
class ExportedParts:
    """The graphs of an encoder–decoder.

    Attributes:
        folder: has them, with the configuration and the tokenizer.
        report: where they came from, and how close they are to PyTorch.
        notes: what a reader of the report must know, such as a lowered opset.
    """

    folder: Path
    report: ExportReport
    notes: tuple[str, ...] = ()


def export_encoder_decoder(
    checkpoint: Path, spec: SourceSpec, folder: Path, *, seed: int = 0
) -> ExportedParts:
    """Write the graphs into ``folder`` and compare them with PyTorch.

    Args:
        checkpoint: a folder in the hub's layout.
        spec: the source; ``task`` is not looked at.
        folder: takes the exported files.
        seed: of the made-up inputs.

    Raises:
        ModelFileError: the checkpoint is no encoder–decoder or cannot be exported, or the graphs
            compute something else than PyTorch.
    """
    require_safetensors(checkpoint)
    if not read_config(checkpoint).is_encoder_decoder:
        raise ModelFileError(f"{checkpoint} is no encoder–decoder: export it as one model")
    opset = min(spec.opset, MAX_OPSET)
    run_optimum(checkpoint, f"{_TASK.name}-with-past", opset, spec.model, folder)
    for name in (ENCODER, DECODER, DECODER_WITH_PAST, DECODER_MERGED):
        if not (folder / name).is_file():
            raise ModelFileError(f"optimum wrote no {name} for {spec.model}: try another version")
    model = _torch_model(checkpoint, seed)
    candidates = [{"logits": teacher_forced_logits(folder, probe)} for probe in model.probes]
    parity = compare_with_torch(model, candidates, spec.parity_tolerance)
    opset = use_onnx_file(folder / ENCODER, spec.model).report.opset
    report = ExportReport(source=spec.model, exporter="optimum", opset=opset, parity=parity)
    return ExportedParts(folder, report, tuple(export_notes(spec, report)))


def teacher_forced_logits(folder: Path, inputs: dict[str, Tensor]) -> Array:
    """The logits ``[B, T, V]`` of given target tokens, by three graphs in turn.

    Args:
        folder: has the graphs.
        inputs: ``input_ids`` and ``attention_mask`` ``[B, S]``, ``decoder_input_ids`` ``[B, T]``.

    Raises:
        ModelFileError: ONNX Runtime cannot load or run a graph.
    """
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    mask, tokens = arrays["attention_mask"], arrays["decoder_input_ids"]
    feeds = {"input_ids": arrays["input_ids"], "attention_mask": mask}
    hidden = _run(folder / ENCODER, feeds)["last_hidden_state"]
    feeds = {"encoder_attention_mask": mask, "encoder_hidden_states": hidden}
    first = _run(folder / DECODER, {**feeds, "input_ids": tokens[:, :-1]})
    past = {name.replace("present", "past_key_values"): value for name, value in first.items()}
    last = _run(folder / DECODER_WITH_PAST, {**feeds, **past, "input_ids": tokens[:, -1:]})
    return np.concatenate([first["logits"], last["logits"]], axis=1)


def _run(path: Path, feeds: dict[str, Array]) -> dict[str, Array]:
    session = open_session(path)
    wanted = {value.name for value in session.get_inputs()}
    return run(session, {name: array for name, array in feeds.items() if name in wanted})


def _torch_model(checkpoint: Path, seed: int) -> TorchModel:
    import torch

    model = load_checkpoint(checkpoint, _TASK)
    generator = torch.Generator().manual_seed(seed)
    sources = text_probes(("input_ids", "attention_mask"), model.config, generator)
    targets = text_probes(("input_ids",), model.config, generator)
    probes = tuple(
        {**source, "decoder_input_ids": _without_padding(target["input_ids"], model.config)}
        for source, target in zip(sources, targets, strict=True)
    )
    return TorchModel(model, _TASK.outputs, dict.fromkeys(probes[0], TEXT_AXES), probes)


def _without_padding(tokens: Tensor, config: PretrainedConfig) -> Tensor:
    """As a decoder is given them: M2M100 does not count padding, which past key values cannot."""
    padding = config.pad_token_id or 0
    return tokens.masked_fill(tokens == padding, (padding + 1) % config.vocab_size)
