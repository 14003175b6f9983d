"""Pairs of an English sentence and its translation, cleaned and split by a hash of the sentence.

Messages of user interfaces (``catalogues.py``) become sentences like this:

1. a placeholder (``%(name)s``, ``{0}``, ``$name``) becomes the word ``X``, and the mark of an
   accelerator key (``&File``) goes; quotation marks, dashes, dots and spaces are spelled in ASCII;
2. what still holds mark-up, code, addresses or options is dropped;
3. so is a pair whose sides differ in their number of ``X``, differ much in length, or have more
   than half of their words in common, which were not translated;
4. a source has at most 30 words, and a pair occurs once.

Two sources that differ only in case, digits, placeholders and punctuation are one sentence. A hash
of what then remains decides its split, so that no sentence of one split is in another, in whatever
language. Training has all lengths, because short labels teach words; the held-out splits have one
translation each of the sentences of 4 words and more.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Literal

from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.data.pairs import SentencePair
from compress_onnx.pipeline.files.atomic import atomic_file
from compress_onnx.pipeline.files.cache import content_key, default_folder

from .catalogues import fetch_messages

Split = Literal["train", "validation", "test"]

LOCALES = {
    "de": ("de", "de_DE"),
    "es": ("es", "es_ES"),
    "fr": ("fr", "fr_FR"),
    "it": ("it", "it_IT"),
    "nl": ("nl", "nl_NL"),
    "pt": ("pt_BR", "pt"),
}
"""The languages that can be asked for, with their variants by preference."""

PACKAGES = Path(__file__).parents[1] / "gettext-marian" / "packages.txt"
"""The packages that carry the catalogues."""

MAX_WORDS = 30
MIN_HELD_OUT_WORDS = 4
# First byte of a sentence's hash: 4 % of all are validation, 4 % test.
_SPLIT_BYTES = 10

_PLACEHOLDER = re.compile(
    r"""%\(\w+\)[-#0-9.]*[a-zA-Z]     # %(name)s
      | %[-#0-9.]*[sdifr](?!\w)       # %s
      | \$?\{\{?[^{}]*\}\}?           # {0}, ${name}, {{ name }}
      | \$\w+                         # $name
    """,
    re.VERBOSE,
)
_ACCELERATOR = re.compile(r"&(?=\w)(?!\w+;)")
_ASCII = str.maketrans(
    dict.fromkeys("“”„«»", '"') | dict.fromkeys("’‘", "'") | dict.fromkeys("–—", "-")
    | dict.fromkeys("\u00a0\u202f", " ") | {"…": "..."}
)  # fmt: skip
_QUOTED = re.compile(r'"\s*([^"]*?)\s*"')
_NOT_PROSE = re.compile(r"[<>\\|_=~^#*@\[\]`$%{}&]|://|--|\w\.\w\w")
_FOREIGN = re.compile(r"[^\W\d_\u0000-\u017f]")
_WORD = re.compile(r"[^\W\d_]+")
_CACHE_VERSION = "translations 1"


def translations(
    languages: Sequence[str], split: Split, requirements: Path = PACKAGES
) -> list[SentencePair]:
    """The pairs of one split, ordered by language.

    The first call fetches the packages, which takes a minute and a few hundred megabytes; the
    clean pairs are kept in the cache folder.

    Args:
        languages: keys of :data:`LOCALES`.
        split: which part.
        requirements: the packages, as a pip requirements file with versions and hashes.

    Raises:
        DataError: a language is unknown, or the packages cannot be fetched or read.
        MissingDependencyError: polib is not installed.
    """
    if unknown := [language for language in languages if language not in LOCALES]:
        raise DataError(f"unknown language {unknown[0]!r}: choose from {', '.join(LOCALES)}")
    pairs = _cached_pairs(requirements)
    chosen = [pair for language in languages for pair in pairs if pair.language == language]
    chosen = [pair for pair in chosen if split_of(pair.source) == split]
    return chosen if split == "train" else list(_one_each(chosen))


def into_english(
    languages: Sequence[str], split: Split, requirements: Path = PACKAGES
) -> list[SentencePair]:
    """:func:`translations` the other way round.

    Several English sentences may have one translation. What is held out is therefore without
    sentences that training reads.
    """
    turned = [
        SentencePair(pair.language, pair.target, pair.source, into="en")
        for pair in translations(languages, split, requirements)
    ]
    if split == "train":
        return turned
    read = {
        (pair.language, sentence_key(pair.target))
        for pair in translations(languages, "train", requirements)
    }
    return [pair for pair in turned if (pair.language, sentence_key(pair.source)) not in read]


def clean_pairs(messages: Iterable[SentencePair]) -> Iterator[SentencePair]:
    """The messages that are sentences, in ASCII spelling and without repetitions."""
    seen = set()
    for message in messages:
        pair = SentencePair(message.language, _spelled(message.source), _spelled(message.target))
        if pair not in seen and _is_translation(pair):
            seen.add(pair)
            yield pair


def split_of(source: str) -> Split:
    """Which split a sentence belongs to."""
    first = hashlib.sha256(sentence_key(source).encode()).digest()[0]
    if first < _SPLIT_BYTES:
        return "test"
    return "validation" if first < 2 * _SPLIT_BYTES else "train"


def sentence_key(source: str) -> str:
    """What two clean sources have in common when they count as the same sentence."""
    return " ".join(word for word in _WORD.findall(source.casefold()) if word != "x")


def tagged(pair: SentencePair) -> str:
    """What the model reads: the sentence with the target language in front."""
    return f"{language_token(pair.language)} {pair.source}"


def language_token(language: str) -> str:
    """The token that asks for ``language``, written as Marian's multilingual models have it."""
    return f">>{language}<<"


def _cached_pairs(requirements: Path) -> list[SentencePair]:
    try:
        key = content_key(_CACHE_VERSION, requirements.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {requirements}: {error.strerror}") from error
    path = default_folder() / f"{key}.json"
    if path.is_file():
        return [SentencePair(*fields) for fields in json.loads(path.read_text(encoding="utf-8"))]
    pairs = list(clean_pairs(fetch_messages(requirements, LOCALES)))
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps([astuple(pair) for pair in pairs]), encoding="utf-8")
    return pairs


def _one_each(pairs: Iterable[SentencePair]) -> Iterator[SentencePair]:
    """The first translation of every sentence that is long enough to be measured on."""
    seen = set()
    for pair in pairs:
        key = pair.language, sentence_key(pair.source)
        if key not in seen and len(pair.source.split()) >= MIN_HELD_OUT_WORDS:
            seen.add(key)
            yield pair


def _spelled(text: str) -> str:
    text = _ACCELERATOR.sub("", _PLACEHOLDER.sub("X", text)).translate(_ASCII)
    return " ".join(_QUOTED.sub(r'"\1"', text).split())


def _is_translation(pair: SentencePair) -> bool:
    source, target = pair.source.split(), pair.target.split()
    if not source or not target or len(source) > MAX_WORDS:
        return False
    if _NOT_PROSE.search(pair.source) or _NOT_PROSE.search(pair.target):
        return False
    if not sentence_key(pair.source) or _FOREIGN.search(pair.source + pair.target):
        return False
    if _placeholders(pair.source) != _placeholders(pair.target):
        return False
    return _like_lengths(pair) and not _untranslated(source, target)


def _placeholders(text: str) -> int:
    return len(re.findall(r"\bX\b", text))


def _like_lengths(pair: SentencePair) -> bool:
    # A word may become three, a sentence hardly grows by half: the margin is in characters.
    shorter, longer = sorted((len(pair.source), len(pair.target)))
    return longer <= 1.8 * shorter + 12


def _untranslated(source: list[str], target: list[str]) -> bool:
    known = {word.casefold() for word in source}
    same = sum(word != "X" and word.casefold() in known for word in target)
    return 2 * same > len(target)
