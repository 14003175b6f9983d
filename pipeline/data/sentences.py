"""English sentences out of plain text, which of them are the same, and which are held out.

Among paragraphs apart by blank lines are headings, code, grammar and tables. Three filters leave
prose:

1. a paragraph with a line of code, grammar, table or heading in it is dropped whole;
2. a paragraph is cut after ``.``, ``!`` or ``?`` where a capital letter follows;
3. a sentence needs 5 to 60 words, a capital at the start, punctuation at the end, and words that
   mostly are words (a quoted piece of code counts as one).

Two sentences that differ only in case, spaces and punctuation are one. A hash of what then remains
decides which split a sentence belongs to, so the splits share no sentence, on any machine.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Literal

Split = Literal["calibration", "validation"]

VALIDATION_SHARE = 80 / 256
MIN_WORDS, MAX_WORDS = 5, 60
MIN_PROSE_SHARE = 0.8

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


def split_sentences(document: str) -> Iterator[str]:
    """The sentences of a plain-text document that look like prose."""
    for paragraph in _BLANK_LINES.split(document):
        if _NOT_PROSE.search(paragraph):
            continue
        for sentence in _SENTENCE_END.split(_flow(paragraph)):
            if _is_prose(sentence):
                yield sentence


def sentence_key(sentence: str) -> str:
    """What two sentences have in common when they count as the same one: their words."""
    return " ".join(re.findall(r"\w+", sentence.casefold()))


def is_held_out(key: str, share: float = VALIDATION_SHARE) -> bool:
    """Whether the sentence with this key is among the ``share`` that no training may see."""
    return hashlib.sha256(key.encode()).digest()[0] < share * 256


def _flow(paragraph: str) -> str:
    """The paragraph on one line, without list marks and emphasis."""
    unwrapped = _WRAPPED_HYPHEN.sub("-", _LIST_MARK.sub("", paragraph))
    return _EMPHASIS.sub(r"\1", " ".join(unwrapped.split()))


def _is_prose(sentence: str) -> bool:
    if not MIN_WORDS <= len(sentence.split()) <= MAX_WORDS or not _COMPLETE.fullmatch(sentence):
        return False
    words = _QUOTED.sub("code", sentence).split()
    return sum(_WORD.fullmatch(word) is not None for word in words) >= MIN_PROSE_SHARE * len(words)
