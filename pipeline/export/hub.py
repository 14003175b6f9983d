"""Bring a model of the Hugging Face hub onto this machine: configuration, tokenizer, weights, card.

Only safetensors weights are asked for, so that no pickle is ever downloaded. Sub-folders are left
out, but for those that a sentence encoder's ``modules.json`` names.
"""

from __future__ import annotations

from pathlib import Path

from compress_onnx.graph_passes.errors import ModelFileError
from compress_onnx.pipeline.export.quiet import quiet
from compress_onnx.pipeline.export.sentence_encoder import MODULES_NAME, read_modules
from compress_onnx.pipeline.runtime.session import one_line

CARD_NAME = "README.md"
"""The model's card, whose front matter names the licence."""

LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*")
"""What goes along with the weights wherever they go."""

_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.spm", "*.jinja"]
_WANTED += [CARD_NAME, *LICENCE_FILES]
# Sub-folders hold the same weights for other runtimes.
_SUBFOLDERS = "*/*"
_UNWANTED = ["*.fp16.safetensors"]


def download(repo_id: str, revision: str | None = None) -> Path:
    """The folder of a snapshot of ``repo_id``; the cached one when there is no network.

    Args:
        repo_id: the model's name on the hub.
        revision: a branch, tag or commit; the newest of the main branch when None.

    Raises:
        ModelFileError: the hub has no such model, refuses it, or cannot be reached; or its
            ``modules.json`` is damaged.
    """
    folder = _snapshot(repo_id, revision, _WANTED, [_SUBFOLDERS, *_UNWANTED])
    if (folder / MODULES_NAME).is_file():
        inner = [module.path for module in read_modules(folder) if module.path]
        if inner:
            # A snapshot's folder has the name of its commit: both downloads are of one.
            wanted = [f"{path}/{pattern}" for path in inner for pattern in _WANTED]
            _snapshot(repo_id, folder.name, wanted, _UNWANTED)
    return folder


def _snapshot(repo_id: str, revision: str | None, wanted: list[str], unwanted: list[str]) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        with quiet():
            return Path(
                snapshot_download(
                    repo_id,
                    revision=revision,
                    allow_patterns=wanted,
                    ignore_patterns=unwanted,
                )
            )
    except errors.LocalEntryNotFoundError as error:
        raise ModelFileError(
            f"{repo_id} is neither a local folder nor in the cache, and the Hugging Face hub "
            "cannot be reached: check the path or the connection"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelFileError(
            f"{repo_id} is neither a local folder nor a public model of the Hugging Face hub: "
            "check the name, or log in with `hf auth login`"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelFileError(
            f"cannot download {repo_id} from the Hugging Face hub: {one_line(error)}"
        ) from error
