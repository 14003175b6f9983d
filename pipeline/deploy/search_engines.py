"""Search engines that embed text themselves.

Vespa reads an application package: the model, ``tokenizer.json``, and a component in
``services.xml``. OpenSearch registers a zip of the two with a JSON that holds its SHA-256.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.pipeline.deploy.package import MODEL_NAME, Package, place_model
from compress_onnx.pipeline.files.model_file import file_digest

_POOLINGS_OF_VESPA = {"mean": "mean", "cls": "cls"}
_POOLINGS_OF_OPENSEARCH = {
    "mean": "MEAN",
    "cls": "CLS",
    "mean_sqrt_len": "MEAN_SQRT_LEN",
    "max": "MAX",
    "weightedmean": "WEIGHTED_MEAN",
    "lasttoken": "LAST_TOKEN",
}
# The zip's bytes, and so its hash, do not depend on when it was made.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


def lay_out_vespa(package: Package, folder: Path) -> Iterator[str]:
    """An application package's folder ``models``, and the component for ``services.xml``."""
    names = [value.name for value in package.inputs]
    pooling = package.pooled_by(_POOLINGS_OF_VESPA, "Vespa")
    component = ElementTree.Element("component", id=package.name, type="hugging-face-embedder")
    for tag in ("transformer-model", "tokenizer-model"):
        file = MODEL_NAME if tag == "transformer-model" else "tokenizer.json"
        ElementTree.SubElement(component, tag, path=f"models/{file}")
    settings = {
        "max-tokens": str(_longest(package)),
        "transformer-input-ids": _input(names, "input_ids"),
        "transformer-attention-mask": _input(names, "attention_mask"),
        # Empty: the model has none, and must not be fed any.
        "transformer-token-type-ids": "token_type_ids" if "token_type_ids" in names else "",
        "transformer-output": package.outputs[0].name,
        "pooling-strategy": pooling,
        "normalize": str(package.pooling.normalized).lower(),
    }
    for tag, text in settings.items():
        ElementTree.SubElement(component, tag).text = text
    ElementTree.indent(component)
    place_model(package.model, folder / "models" / MODEL_NAME, inline=True)
    _copy_tokenizer(package, folder / "models" / "tokenizer.json")
    xml = ElementTree.tostring(component, encoding="unicode") + "\n"
    (folder / "component.xml").write_text(xml, encoding="utf-8")
    yield "put the element of component.xml into the <container> of services.xml"


def lay_out_opensearch(package: Package, folder: Path) -> Iterator[str]:
    """The zip to upload, and the body of the request that registers it."""
    pooling = package.pooled_by(_POOLINGS_OF_OPENSEARCH, "OpenSearch")
    place_model(package.model, folder / MODEL_NAME, inline=True)
    _copy_tokenizer(package, folder / "tokenizer.json")
    archive = folder / f"{package.name}.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as written:
        for file in (folder / MODEL_NAME, folder / "tokenizer.json"):
            written.writestr(
                zipfile.ZipInfo(file.name, _ZIP_TIME), file.read_bytes(), zipfile.ZIP_DEFLATED
            )
            file.unlink()
    body = {
        "name": package.name,
        "version": "1.0.0",
        "model_format": "ONNX",
        "function_name": "TEXT_EMBEDDING",
        "model_content_size_in_bytes": archive.stat().st_size,
        "model_content_hash_value": file_digest(archive),
        "model_config": {
            "model_type": package.config.get("model_type", "bert"),
            "embedding_dimension": package.width,
            "framework_type": "sentence_transformers",
            "pooling_mode": pooling,
            "normalize_result": package.pooling.normalized,
        },
        "url": f"https://example.org/{archive.name}",
    }
    text = json.dumps(body, indent=2) + "\n"
    (folder / "register.json").write_text(text, encoding="utf-8")
    yield f"set url in register.json to where {archive.name} is fetched from"


def _copy_tokenizer(package: Package, target: Path) -> None:
    source = package.require(package.transformer / "tokenizer.json", "turns text into tokens")
    target.write_bytes(source.read_bytes())


def _input(names: list[str], wanted: str) -> str:
    if wanted not in names:
        raise RequestError(f"an embedder feeds {wanted}, and the model takes {', '.join(names)}")
    return wanted


def _longest(package: Package) -> int:
    """Tokens of the longest text: the encoder's own limit, or its table of positions."""
    path = package.folder / package.transformer / "sentence_bert_config.json"
    if path.is_file():
        longest = json.loads(path.read_text(encoding="utf-8")).get("max_seq_length")
        if isinstance(longest, int):
            return longest
    return int(package.config.get("max_position_embeddings", 512))
