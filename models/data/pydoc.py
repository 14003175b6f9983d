"""English sentences out of Python's language reference, which every Python carries along.

The reference (``pydoc_data.topics``) is plain text, of which the prose is taken
(:mod:`pipeline.data.sentences`); a hash of the words decides which split a sentence belongs to.

The topics are labels too: whoever looks for a sentence's like wants its topic. What several topics
have belongs to the shortest of them.
"""

from __future__ import annotations

from collections import Counter

from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.data.documents import reference_topics
from compress_onnx.pipeline.data.sentences import Split, is_held_out, sentence_key, split_sentences

LEAST_OF_A_TOPIC = 3


def pydoc_sentences(split: Split) -> list[str]:
    """The sentences of a split, each once, in order of appearance.

    Raises:
        DataError: this Python comes without ``pydoc_data``.
    """
    unique: dict[str, str] = {}
    for document in _documents().values():
        for sentence in split_sentences(document):
            unique.setdefault(sentence_key(sentence), sentence)
    return [text for key, text in unique.items() if _is_in(split, key)]


def pydoc_topics(split: Split) -> tuple[list[str], list[str]]:
    """The same sentences with their topics, of topics with at least three in the split.

    Raises:
        DataError: this Python comes without ``pydoc_data``.
    """
    found: dict[str, tuple[str, str]] = {}
    for topic, document in sorted(_documents().items(), key=lambda item: (len(item[1]), item[0])):
        for sentence in split_sentences(document):
            found.setdefault(sentence_key(sentence), (sentence, topic))
    labelled = [pair for key, pair in found.items() if _is_in(split, key)]
    sizes = Counter(topic for _, topic in labelled)
    kept = [pair for pair in labelled if sizes[pair[1]] >= LEAST_OF_A_TOPIC]
    return [text for text, _ in kept], [topic for _, topic in kept]


def _is_in(split: Split, key: str) -> bool:
    return is_held_out(key) == (split == "validation")


def _documents() -> dict[str, str]:
    topics = reference_topics()
    if not topics:
        raise DataError(
            "this Python comes without pydoc_data (the full standard library has it): "
            "install it, or give a text file as data"
        )
    return topics
