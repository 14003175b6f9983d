"""Which sentences are held out: their words decide, so that splits are the same everywhere."""

from __future__ import annotations

import hashlib
import re


def sentence_key(sentence: str) -> str:
    """What two sentences have in common when they count as the same one: their words."""
    return " ".join(re.findall(r"\w+", sentence.casefold()))


def is_held_out(key: str, share: float) -> bool:
    """Whether the sentence with this key is among the ``share`` that no training may see."""
    return hashlib.sha256(key.encode()).digest()[0] < share * 256
