"""A general text that needs no download: sentences out of what is installed anyway.

Each source is a number of streams of documents (a package, a file, a topic). Sentences are taken
from the sources in turn, and in each source from its streams in turn, so that no large source and
no large package outweighs others. A sentence occurs once, in whatever source it comes first. The
seed chooses, by hashes of names: neither the order of installation nor that of files matters.

What is installed differs from machine to machine, and so does the text.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import Distribution
from itertools import islice
from typing import TypeVar

from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.data import documents
from compress_onnx.pipeline.data.sentences import is_held_out, sentence_key, split_sentences
from compress_onnx.pipeline.recipe import GeneralTextData, TextSource

T = TypeVar("T")


def general_text(spec: GeneralTextData, seed: int = 0) -> dict[str, TextSource]:
    """The sentences that ``spec`` asks for, each with the source that it comes from.

    Raises:
        DataError: fewer sentences are installed.
    """
    shuffle = _Shuffle(seed)
    seen = set[str]()
    if spec.exclude:
        packages = _identities(documents.installed())
        seen.update(*(_keys(source, packages) for source in spec.exclude))
    held_out = spec.split == "validation"

    def unseen(source: TextSource) -> Iterator[tuple[str, TextSource]]:
        for text in _sentences(source, shuffle):
            key = sentence_key(text)
            if key not in seen and is_held_out(key) == held_out:
                seen.add(key)
                yield text, source

    found = dict(islice(in_turn(map(unseen, spec.taken)), spec.samples))
    if len(found) < spec.samples:
        raise DataError(
            f"general text: {len(found)} sentences of {', '.join(spec.taken)} are installed for "
            f"{spec.split}, fewer than samples: {spec.samples}; ask for fewer, or name more sources"
        )
    # Not in turn any more: a part such as every fifth sample would be of one source alone.
    return {text: found[text] for text in shuffle(found)}


@cache
def _keys(source: TextSource, packages: tuple[str, ...]) -> frozenset[str]:
    """All sentences of a source: a minute's work, so it is done once for the same ``packages``."""
    del packages
    return frozenset(map(sentence_key, _sentences(source, _Shuffle(0))))


def _identities(packages: Mapping[str, Distribution]) -> tuple[str, ...]:
    return tuple(f"{each.locate_file(name)} {each.version}" for name, each in packages.items())


def in_turn(streams: Iterable[Iterator[T]]) -> Iterator[T]:
    """One item of each stream in turn; those that have ended are left out."""
    waiting = deque(streams)
    while waiting:
        stream = waiting.popleft()
        for item in islice(stream, 1):
            yield item
            waiting.append(stream)


class _Shuffle:
    """Puts names and texts into an order that the seed alone decides, by their hashes."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(self, items: Iterable[str]) -> list[str]:
        return sorted(items, key=self._hash)

    def _hash(self, item: str) -> bytes:
        text = f"{self._seed}:{item}".encode(errors="surrogatepass")
        return hashlib.sha256(text).digest()


def _sentences(source: TextSource, shuffle: _Shuffle) -> Iterator[str]:
    """The sentences of one source, from its streams in turn."""

    def flow(stream: Iterable[str]) -> Iterator[str]:
        for document in stream:
            yield from shuffle(split_sentences(document))

    return in_turn(map(flow, _SOURCES[source](shuffle)))


def _descriptions(shuffle: _Shuffle) -> Iterator[Iterable[str]]:
    packages = documents.installed()
    return ([documents.description_of(packages[name])] for name in shuffle(packages))


def _docstrings(shuffle: _Shuffle) -> Iterator[Iterable[str]]:
    packages = documents.installed()

    def stream(package: Distribution) -> Iterator[str]:
        files = documents.files_of(package, ".py")
        for name in shuffle(files):
            yield from documents.docstrings_of(files[name])

    return (stream(packages[name]) for name in shuffle(packages))


def _library(shuffle: _Shuffle) -> Iterator[Iterable[str]]:
    files = documents.library_files()
    return (documents.docstrings_of(files[name]) for name in shuffle(files))


def _reference(shuffle: _Shuffle) -> Iterator[Iterable[str]]:
    topics = documents.reference_topics()
    return ([topics[name]] for name in shuffle(topics))


def _messages(shuffle: _Shuffle) -> Iterator[Iterable[str]]:
    packages = documents.installed()
    found = (documents.catalogues_of(packages[name]) for name in shuffle(packages))
    return (shuffle(documents.messages_of(path)) for files in found for path in files)


_SOURCES: Mapping[TextSource, Callable[[_Shuffle], Iterator[Iterable[str]]]] = {
    "descriptions": _descriptions,
    "docstrings": _docstrings,
    "library": _library,
    "reference": _reference,
    "messages": _messages,
}
