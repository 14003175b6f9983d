"""From texts and images to model inputs, with the preprocessor that belongs to the model.

Tokenizers and image processors come from the model's own folder, or from the hub by name; code
that a repository brings along is never run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import DataError, MissingDependencyError
from compress_onnx.pipeline.runtime.session import one_line

if TYPE_CHECKING:
    from PIL.Image import Image


def tokenize(
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    tokenizer_dir: Path | None,
    input_names: Sequence[str],
    max_tokens: int,
) -> dict[str, Array]:
    """Turn texts (or pairs of texts) into token ids and what else the model wants.

    Args:
        texts: one text a sample.
        pairs: the second text of each sample.
        tokenizer_dir: a folder with the tokenizer's files, or a name on the hub.
        input_names: the model's inputs; nothing else is returned.
        max_tokens: longer samples are cut off.

    Returns:
        int64 arrays ``[samples, T]`` padded to the longest sample; zero ``token_type_ids`` where
        the model wants them and the tokenizer knows none.

    Raises:
        DataError: there is no tokenizer, or it cannot be loaded.
        MissingDependencyError: transformers is not installed.
    """
    tokenizer = load_tokenizer(tokenizer_dir)
    if tokenizer.pad_token is None:
        # Any token will do: the mask hides it.
        tokenizer.pad_token = tokenizer.eos_token
    encoded = tokenizer(
        list(texts),
        None if pairs is None else list(pairs),
        padding="longest",
        truncation=True,
        max_length=max_tokens,
        return_attention_mask=True,
        return_tensors="np",
    )
    arrays = {name: np.asarray(array, dtype=np.int64) for name, array in encoded.items()}
    arrays.setdefault("token_type_ids", np.zeros_like(arrays["input_ids"]))
    return {name: array for name, array in arrays.items() if name in input_names}


@dataclass(frozen=True)
class Vocabulary:
    """What masking has to know about a tokenizer's tokens.

    Attributes:
        mask_id: the token that stands for a word to be filled in.
        words: ``[V]``, True for tokens that are words or parts of one: they have a letter or a
            digit, and are not special.
    """

    mask_id: int
    words: NDArray[np.bool_]


def read_vocabulary(tokenizer_dir: Path | None) -> Vocabulary:
    """The vocabulary of the tokenizer in a folder, or of that name on the hub.

    Raises:
        DataError: there is no tokenizer, it cannot be loaded, or it has no mask token.
        MissingDependencyError: transformers is not installed.
    """
    tokenizer = load_tokenizer(tokenizer_dir)
    if tokenizer.mask_token_id is None:
        raise DataError(
            f"the tokenizer in {tokenizer_dir} has no mask token: masked words need a model that "
            "was trained to fill them in"
        )
    tokens = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    words = np.array([any(map(str.isalnum, token)) for token in tokens])
    words[tokenizer.all_special_ids] = False
    return Vocabulary(tokenizer.mask_token_id, words)


def load_tokenizer(source: Path | None) -> Any:  # noqa: ANN401
    """The tokenizer in a folder, or by its name on the hub.

    Raises:
        DataError: there is none, or it cannot be loaded.
        MissingDependencyError: transformers is not installed.
    """
    return _from_pretrained("AutoTokenizer", source)


def process_images(images: Sequence[Image], *, processor_dir: Path | None) -> dict[str, Array]:
    """Turn PIL images into ``pixel_values`` float32 ``[samples, channels, height, width]``.

    Raises:
        DataError: there is no image processor, or it cannot be loaded or applied.
        MissingDependencyError: transformers is not installed.
    """
    processor = _from_pretrained("AutoImageProcessor", processor_dir)
    if len(processor.image_mean) == 1:
        pictures: list[Any] = [np.asarray(image.convert("L"))[..., None] for image in images]
    else:
        pictures = [image.convert("RGB") for image in images]
    try:
        pixels = processor(pictures, return_tensors="np")["pixel_values"]
    except ValueError as error:
        raise DataError(
            f"{processor_dir} cannot process these images: {one_line(error)}"
        ) from error
    return {"pixel_values": np.asarray(pixels, dtype=np.float32)}


def _from_pretrained(  # transformers' classes carry no types
    auto_class: Literal["AutoTokenizer", "AutoImageProcessor"], source: Path | None
) -> Any:  # noqa: ANN401
    if source is None:
        raise DataError(
            "texts and images need the model's preprocessor: use a Hugging Face model as source, "
            "or give the data as .npz"
        )
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            'texts and images need transformers: pip install "compress-onnx[export]"'
        ) from error
    try:
        return getattr(transformers, auto_class).from_pretrained(
            source.as_posix(), local_files_only=source.is_dir(), trust_remote_code=False
        )
    except ImportError as error:  # SentencePiece, for tokenizers that come without tokenizer.json
        raise MissingDependencyError(
            f"{source}: install what its {auto_class[4:]} needs: {one_line(error)}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{source}: no usable {auto_class[4:]}: {one_line(error)}") from error
