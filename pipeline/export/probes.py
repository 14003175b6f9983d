"""Made-up inputs for a Hugging Face model, at two sizes.

Text: random token ids, the first row padded at its end. Images: standard normal pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compress_onnx.graph_passes.errors import RequestError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PretrainedConfig

# The larger batch first where the other is 1: a probe is traced, and the tracer takes 1 for fixed.
_TEXT_SIZES = ((2, 16), (3, 11))
_IMAGE_BATCHES = (3, 1)
_IMAGE_SIZE = 224

# As configurations write it: an edge, (height, width), or edges by name.
ImageSize = int | Sequence[int] | Mapping[str, int]

BATCH_AXIS = {0: "batch_size"}
TEXT_AXES = {0: "batch_size", 1: "sequence_length"}


def text_probes(
    names: Sequence[str], config: PretrainedConfig, generator: torch.Generator
) -> tuple[dict[str, Tensor], ...]:
    """Inputs ``[batch, sequence]`` called ``names``, of two sizes.

    Raises:
        RequestError: a name is not one of the usual ones.
    """
    probes = [_text(config, batch, length, generator) for batch, length in _TEXT_SIZES]
    if unknown := [name for name in names if name not in probes[0]]:
        raise RequestError(f"the model's input {unknown[0]!r} is none that can be made up")
    return tuple({name: probe[name] for name in names} for probe in probes)


def image_probes(
    config: PretrainedConfig, folder: Path, generator: torch.Generator
) -> tuple[dict[str, Tensor], ...]:
    """``pixel_values`` ``[batch, channels, height, width]`` for two batch sizes."""
    import torch

    shape = (getattr(config, "num_channels", 3), *_image_size(config, folder))
    return tuple(
        {"pixel_values": torch.randn(batch, *shape, generator=generator)}
        for batch in _IMAGE_BATCHES
    )


def _text(
    config: PretrainedConfig, batch: int, length: int, generator: torch.Generator
) -> dict[str, Tensor]:
    import torch

    def draw(end: int) -> Tensor:
        return torch.randint(end, (batch, length), generator=generator)

    text_config = config.get_text_config()
    ids, mask = draw(text_config.vocab_size), torch.ones(batch, length, dtype=torch.int64)
    padding = slice(length - length // 4, length)
    mask[0, padding] = 0
    ids[0, padding] = getattr(text_config, "pad_token_id", None) or 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": draw(max(1, getattr(text_config, "type_vocab_size", 1))),
        "position_ids": torch.arange(length).repeat(batch, 1),
    }


def _image_size(config: PretrainedConfig, folder: Path) -> tuple[int, int]:
    size: ImageSize = getattr(config, "image_size", None) or _preprocessed_size(folder)
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge", _IMAGE_SIZE)
        return size.get("height", edge), size.get("width", edge)
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _preprocessed_size(folder: Path) -> ImageSize:
    """What the image processor yields: a convolutional model's configuration names no size."""
    file = folder / "preprocessor_config.json"
    settings: dict[str, ImageSize] = (
        json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    )
    return settings.get("crop_size") or settings.get("size") or _IMAGE_SIZE
