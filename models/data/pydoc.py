"""English sentences out of Python's language reference, which every Python carries along.

The reference (``pydoc_data.topics``) is plain text, of which the prose is taken
(:mod:`pipeline.data.sentences`); a hash of the words decides which split a sentence belongs to.
"""

from __future__ import annotations

from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.data.documents import reference_topics
from compress_onnx.pipeline.data.sentences import Split, is_held_out, sentence_key, split_sentences


def pydoc_sentences(split: Split) -> list[str]:
    """The sentences of one split, in the order of the reference.

    Raises:
        DataError: this Python comes without ``pydoc_data``.
    """
    held_out = split == "validation"
    return [text for key, text in _unique_sentences().items() if is_held_out(key) == held_out]


def _unique_sentences() -> dict[str, str]:
    topics = reference_topics()
    if not topics:
        raise DataError(
            "this Python comes without pydoc_data (the full standard library has it): "
            "install it, or give a text file as data"
        )
    unique: dict[str, str] = {}
    for document in topics.values():
        for sentence in split_sentences(document):
            unique.setdefault(sentence_key(sentence), sentence)
    return unique
