"""Sentences with one word masked: what a masked-language model sees, and what it is to fill in.

1. A word is any token that the vocabulary counts as one; punctuation and padding are none.
2. Each sentence loses one of its words, drawn at random, to the mask token. The label at that
   position is the word, at all others :data:`UNLABELLED`.
3. Sentences without a word are left out, and the samples' origin says how many.
"""

from __future__ import annotations

import numpy as np

from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.data.preprocessing import Vocabulary
from compress_onnx.pipeline.runtime.samples import Samples

UNLABELLED = -100
"""The label of positions with nothing to fill in: what losses in PyTorch leave out by default."""

_INPUT = "input_ids"


def mask_one_word(sentences: Samples, vocabulary: Vocabulary, seed: int) -> Samples:
    """Mask one word of each sentence.

    Args:
        sentences: tokens ``input_ids`` ``[samples, T]`` and what else the model takes.
        vocabulary: of the tokenizer that made them.
        seed: draws the words.

    Returns:
        Samples with labels ``[samples, T]``.

    Raises:
        DataError: the model takes no ``input_ids``, or no sentence has a word.
    """
    if _INPUT not in sentences.inputs:
        raise DataError(f"{sentences.origin}: words can only be masked in {_INPUT}")
    words = vocabulary.words[sentences.inputs[_INPUT]]
    kept = np.flatnonzero(words.any(axis=1))
    if not len(kept):
        raise DataError(f"{sentences.origin}: there is no word to mask")
    chosen, left_out = sentences.select(kept), len(sentences) - len(kept)
    ids = chosen.inputs[_INPUT]
    draws = np.random.default_rng(seed).random(ids.shape)
    position = np.where(words[kept], draws, -1.0).argmax(axis=1)[:, None]
    masked = np.arange(ids.shape[1]) == position
    without = f", {left_out} without a word left out" if left_out else ""
    return Samples(
        {**chosen.inputs, _INPUT: np.where(masked, vocabulary.mask_id, ids)},
        chosen.mask_name,
        np.where(masked, ids, UNLABELLED),
        f"{sentences.origin}, one word masked{without}",
    )
