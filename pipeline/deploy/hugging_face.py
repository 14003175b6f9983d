"""Folders in the hub's layout, for the libraries that load them.

| target | model | beside it |
|:---|:---|:---|
| sentence-transformers | ``onnx/model.onnx`` of the transformer | ``modules.json``, pooling |
| tei | ``onnx/model.onnx`` | ``config.json``, tokenizer, ``1_Pooling`` |
| fastembed | ``onnx/model.onnx`` | tokenizer files, flat |
| optimum | ``model.onnx`` | ``config.json``, tokenizer |
| transformers-js | ``onnx/model_quantized.onnx`` | ``config.json``, ``tokenizer.json`` |

With the original beside it, that is ``onnx/model.onnx`` where the library can be told another file
name, and the compressed one is ``onnx/model_compressed.onnx``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.pipeline.deploy.package import MODEL_NAME, Package, place_model

COMPRESSED_NAME = "model_compressed.onnx"
QUANTIZED_NAME = "model_quantized.onnx"

_POOLINGS_OF_TEI = {"mean": "mean", "cls": "cls", "lasttoken": "last-token"}
_POOLINGS_OF_FASTEMBED = {"mean": "MEAN", "cls": "CLS"}
_OUTPUTS_OF_TEI = {"last_hidden_state", "token_embeddings", "sentence_embedding", "logits"}


def lay_out_sentence_transformers(package: Package, folder: Path) -> Iterator[str]:
    """``SentenceTransformer(folder, backend="onnx")``."""
    package.require("modules.json", "lists what a sentence goes through")
    _require_tokenizer(package)
    package.copy_assets(folder)
    _place(package, folder / package.transformer / "onnx")
    yield from ()


def lay_out_tei(package: Package, folder: Path) -> Iterator[str]:
    """``text-embeddings-router --model-id folder``."""
    _require_tokenizer(package)
    names = {value.name for value in package.outputs}
    if not names & _OUTPUTS_OF_TEI:
        raise RequestError(
            f"text-embeddings-inference reads {', '.join(sorted(_OUTPUTS_OF_TEI))}, and the model "
            f"gives {', '.join(sorted(names))}"
        )
    for value in package.outputs:
        if value.type_name != "FLOAT":
            raise RequestError(
                f"text-embeddings-inference takes float32 outputs only, and {value.name!r} is "
                f"{value.type_name}"
            )
    if "logits" not in names:
        package.pooled_by(_POOLINGS_OF_TEI, "text-embeddings-inference")
    _flat_assets(package, folder)
    place_model(package.model, folder / "onnx" / MODEL_NAME, inline=True)
    yield from ()


def lay_out_fastembed(package: Package, folder: Path) -> Iterator[str]:
    """``TextEmbedding.add_custom_model``."""
    _require_tokenizer(package)
    package.require(package.transformer / "special_tokens_map.json", "fastembed reads")
    package.pooled_by(_POOLINGS_OF_FASTEMBED, "fastembed")
    _flat_assets(package, folder)
    place_model(package.model, folder / "onnx" / MODEL_NAME, inline=True)
    yield from ()


def lay_out_optimum(package: Package, folder: Path) -> Iterator[str]:
    """``ORTModelFor….from_pretrained(folder)``."""
    _ = package.config
    _flat_assets(package, folder)
    if package.original is None:
        place_model(package.model, folder / MODEL_NAME)
    else:
        place_model(package.original, folder / MODEL_NAME)
        place_model(package.model, folder / COMPRESSED_NAME)
    yield from ()


def lay_out_transformers_js(package: Package, folder: Path) -> Iterator[str]:
    """``pipeline(task, folder, {dtype: "q8"})``; with the original, ``dtype: "fp32"`` is that."""
    _ = package.config
    _require_tokenizer(package)
    _flat_assets(package, folder)
    if package.original is not None:
        place_model(package.original, folder / "onnx" / MODEL_NAME, inline=True)
    place_model(package.model, folder / "onnx" / QUANTIZED_NAME, inline=True)
    yield from ()


def _place(package: Package, folder: Path) -> None:
    if package.original is None:
        place_model(package.model, folder / MODEL_NAME, inline=True)
        return
    place_model(package.original, folder / MODEL_NAME, inline=True)
    place_model(package.model, folder / COMPRESSED_NAME, inline=True)


def _flat_assets(package: Package, folder: Path) -> None:
    """What belongs to the transformer at the top, whatever else there is where it was."""
    package.copy_assets(folder)
    if package.transformer != Path():
        package.copy_assets(folder, below=package.transformer)


def _require_tokenizer(package: Package) -> None:
    package.require(package.transformer / "tokenizer.json", "turns text into tokens")
    _ = package.config
