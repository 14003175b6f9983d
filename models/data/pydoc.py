"""English sentences out of Python's language reference, which every Python carries along.

The reference (``pydoc_data.topics``) is a plain text for each topic: paragraphs apart by blank
lines, among them headings, code, grammar and tables. Three filters leave prose:

1. a paragraph with a line of code, grammar, table or heading in it is dropped whole;
2. a paragraph is cut after ``.``, ``!`` or ``?`` where a capital letter follows;
3. a sentence needs 5 to 60 words, a capital at the start, punctuation at the end, and words that
   mostly are words (a quoted piece of code counts as one).

Two sentences that differ only in case, spaces and punctuation are one. A hash of what then remains
decides which split a sentence belongs to, so the splits share no sentence, on any machine.

The topics are labels too: whoever looks for a sentence's like wants its topic. What several topics
have belongs to the shortest of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Literal

from compress_onnx.graph_passes.errors import DataError

from .split import is_held_out, sentence_key

MIN_WORDS, MAX_WORDS = 5, 60
MIN_PROSE_SHARE = 0.8
VALIDATION_SHARE = 80 / 256
LEAST_OF_A_TOPIC = 3

Split = Literal["calibration", "validation"]

_BLANK_LINES = re.compile(r"\n[ \t]*\n")
_NOT_PROSE = re.compile(
    r"""^\s*(?:
        >>>|\.\.\.(?:\s|$)          # an interactive session
      | [*=\-~^+|]{3,}              # underlines and table borders
      | \|                          # table rows
      | (?:class|def|async)\ .*:\s*$
      | Traceback\ \(
    )
    | \s\#\s                       # comments in code
    | ::=                           # grammar
    | [ ]{4,}\S.*[ ]{4,}\S          # columns
    """,
    re.MULTILINE | re.VERBOSE,
)
_LIST_MARK = re.compile(r"^\s*(?:[*\-]|\d+\.|\[\d+\])\s+")
_WRAPPED_HYPHEN = re.compile(r"(?<=\w)-\s*\n\s*(?=\w)")
_EMPHASIS = re.compile(r"(?<![\w*])\*{1,2}([^\s*](?:[^*]*[^\s*])?)\*{1,2}(?![\w*])")
_SENTENCE_END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][)\"]))\s+(?=[\"(]?[A-Z])")
_WORD = re.compile(r"""[("']*[A-Za-z][A-Za-z'’\-]*[)"',;:.!?]*""")
_QUOTED = re.compile(r'"[^"]*"')
_COMPLETE = re.compile(r"""[A-Z"'(].*[.!?:][)"]?""")


def pydoc_sentences(split: Split) -> list[str]:
    """The sentences of one split, in the order of the reference.

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


def split_sentences(document: str) -> Iterator[str]:
    """The sentences of a plain-text document that look like prose."""
    for paragraph in _BLANK_LINES.split(document):
        if _NOT_PROSE.search(paragraph):
            continue
        for sentence in _SENTENCE_END.split(_flow(paragraph)):
            if _is_prose(sentence):
                yield sentence


def _is_in(split: Split, key: str) -> bool:
    return is_held_out(key, VALIDATION_SHARE) == (split == "validation")


def _documents() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            "this Python comes without pydoc_data (the full standard library has it): "
            "install it, or give a text file as data"
        ) from error
    return topics


def _flow(paragraph: str) -> str:
    """The paragraph on one line, without list marks and emphasis."""
    unwrapped = _WRAPPED_HYPHEN.sub("-", _LIST_MARK.sub("", paragraph))
    return _EMPHASIS.sub(r"\1", " ".join(unwrapped.split()))


def _is_prose(sentence: str) -> bool:
    if not MIN_WORDS <= len(sentence.split()) <= MAX_WORDS or not _COMPLETE.fullmatch(sentence):
        return False
    words = _QUOTED.sub("code", sentence).split()
    return sum(_WORD.fullmatch(word) is not None for word in words) >= MIN_PROSE_SHARE * len(words)
