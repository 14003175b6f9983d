"""Text and masked words as samples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loading import TEXT_INPUTS, load

from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.data.masking import UNLABELLED, mask_one_word
from compress_onnx.pipeline.data.preprocessing import Vocabulary
from compress_onnx.pipeline.recipe import MaskedData, TextData
from compress_onnx.pipeline.runtime.samples import Samples

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
