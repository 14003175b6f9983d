"""Export a Hugging Face model from the hub or from a folder in its layout.

Of a sentence encoder it is the transformer (:mod:`pipeline.export.sentence_encoder`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.pipeline.export.checkpoint import load_checkpoint, read_config, torch_model
from compress_onnx.pipeline.export.dependencies import require_export_extra
from compress_onnx.pipeline.export.dynamo import export_dynamo
from compress_onnx.pipeline.export.exported import ExportedModel
from compress_onnx.pipeline.export.hub import CARD_NAME, LICENCE_FILES, download
from compress_onnx.pipeline.export.optimum_export import export_optimum
from compress_onnx.pipeline.export.sentence_encoder import read_sentence_encoder
from compress_onnx.pipeline.export.source import FolderSource, HubSource
from compress_onnx.pipeline.export.tasks import require_task
from compress_onnx.pipeline.recipe import SourceSpec

_PREPROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template.*",
)
_CONFIG_FILES = ("config.json", "generation_config.json")


def export_huggingface(
    source: FolderSource | HubSource, spec: SourceSpec, folder: Path, *, seed: int
) -> ExportedModel:
    """Export the model that ``source`` names into ``folder``.

    Raises:
        RequestError: the task does not fit the model, or the model has several parts.
        ModelFileError: the checkpoint cannot be had, read or exported, or its export differs from
            PyTorch.
        MissingDependencyError: a package of the ``export`` extra is not installed.
    """
    require_export_extra("torch", "transformers", "onnxscript", "safetensors")
    root = checkpoint_of(source, spec.revision)
    encoder = read_sentence_encoder(root)
    checkpoint = encoder.transformer if encoder else root
    if encoder and spec.task is None:
        spec = spec.model_copy(update={"task": "feature-extraction"})
    if spec.exporter == "optimum":
        require_export_extra("optimum")
        exported = export_optimum(checkpoint, spec, folder, seed=seed)
    else:
        exported = _export_dynamo(checkpoint, spec, folder, seed)
    preprocessor = _files(checkpoint, _PREPROCESSOR_FILES)
    described = encoder.files if encoder else ()
    licences = licence_files(root)
    card = root / CARD_NAME
    hub_id = source.repo_id if isinstance(source, HubSource) else None
    return dataclasses.replace(
        exported,
        report=exported.report.model_copy(update={"hub_id": hub_id}),
        assets=tuple(
            dict.fromkeys(
                (*_files(checkpoint, _CONFIG_FILES), *preprocessor, *described, *licences)
            )
        ),
        asset_root=root,
        tokenizer_dir=checkpoint if preprocessor else None,
        pooling=encoder.pooling if encoder else None,
        notes=(*exported.notes, *(encoder.notes if encoder else ())),
        card=card if card.is_file() else None,
    )


def checkpoint_of(source: FolderSource | HubSource, revision: str | None = None) -> Path:
    """The folder of the checkpoint, fetched from the hub where it is not local.

    Raises:
        ModelFileError: the hub has no such model, refuses it, or cannot be reached.
    """
    if isinstance(source, FolderSource):
        return source.folder
    return download(source.repo_id, revision)


def licence_files(folder: Path) -> tuple[Path, ...]:
    """The texts of licences, and what they say has to be told, in ``folder``."""
    return _files(folder, LICENCE_FILES)


def _export_dynamo(checkpoint: Path, spec: SourceSpec, folder: Path, seed: int) -> ExportedModel:
    config = read_config(checkpoint)
    if config.is_encoder_decoder:
        raise RequestError(
            f"{spec.model} is an encoder with a decoder, which the exporter dynamo cannot split: "
            "run a recipe with the metric translation, or use the exporter optimum and compress "
            "each of the files that it writes"
        )
    task = require_task(spec.task, config.architectures)
    model = torch_model(load_checkpoint(checkpoint, task), task, checkpoint, seed=seed)
    return export_dynamo(model, spec, folder)


def _files(folder: Path, patterns: tuple[str, ...]) -> tuple[Path, ...]:
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return tuple(sorted(found))
