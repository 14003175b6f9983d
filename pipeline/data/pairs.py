"""A sentence with its translation: what data of translations is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SentencePair:
    """A sentence, and what it is in another language.

    Attributes:
        language: the target's, as the recipe calls it, such as ``de``; the source's where ``into``
            is given.
        source: the sentence.
        target: its translation.
        into: the target's language where all sentences are translated into one.
    """

    language: str
    source: str
    target: str
    into: str | None = None
