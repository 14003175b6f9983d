"""Where samples come from, and how they are cut into batches."""

import json
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.data import npz
from compress_onnx.pipeline.data.masking import UNLABELLED, mask_one_word
from compress_onnx.pipeline.data.npz import load_npz
from compress_onnx.pipeline.data.preprocessing import Vocabulary
from compress_onnx.pipeline.data.sources import load_samples
from compress_onnx.pipeline.recipe import HubData, MaskedData, NpzData, TextData
from compress_onnx.pipeline.runtime.samples import Samples

TEXT_INPUTS = ("input_ids", "attention_mask")


# --- samples -------------------------------------------------------------------------------------


def padded_samples(lengths, width, left=False):
    ids = np.zeros((len(lengths), width), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        columns = slice(width - length, width) if left else slice(0, length)
        ids[row, columns] = 100 * row + np.arange(1, length + 1)
        mask[row, columns] = 1
    labels = np.arange(len(lengths))
    pixels = np.arange(len(lengths) * 3.0).reshape(-1, 1, 3)
    return Samples({"ids": ids, "mask": mask, "pixels": pixels}, "mask", labels)


def masked_sums(ids, mask):
    return (ids * mask).sum(axis=1)


@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=20),
    size=st.integers(1, 8),
    left=st.booleans(),
)
def test_trimmed_batches_hold_every_sample_once_and_lose_no_real_position(lengths, size, left):
    samples = padded_samples(lengths, width=9, left=left)
    batches = list(samples.batches(size))
    assert sorted(np.concatenate([batch.index for batch in batches])) == list(range(len(lengths)))
    expected = masked_sums(samples.inputs["ids"], samples.inputs["mask"])
    for batch in batches:
        longest = max(1, *(lengths[row] for row in batch.index))
        assert batch.feeds["ids"].shape == batch.mask.shape == (len(batch.index), longest)
        np.testing.assert_array_equal(batch.mask, batch.feeds["mask"].astype(bool))
        np.testing.assert_array_equal(
            masked_sums(batch.feeds["ids"], batch.mask), expected[batch.index]
        )
        np.testing.assert_array_equal(batch.labels, batch.index)
        np.testing.assert_array_equal(batch.feeds["pixels"], samples.inputs["pixels"][batch.index])


def test_samples_of_like_length_share_a_batch():
    batches = list(padded_samples([1, 6, 2, 5], width=6).batches(2))
    assert [batch.feeds["ids"].shape[1] for batch in batches] == [6, 2]


def test_without_a_mask_the_order_stays_and_nothing_is_trimmed():
    samples = Samples({"x": np.arange(10.0).reshape(5, 2)})
    batches = list(samples.batches(2))
    assert [batch.index.tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    assert all(batch.mask is None and batch.labels is None for batch in batches)
    np.testing.assert_array_equal(
        np.concatenate([batch.feeds["x"] for batch in batches]), samples.inputs["x"]
    )


@pytest.mark.parametrize("left", [False, True])
def test_labels_of_positions_are_trimmed_with_them(left):
    samples = padded_samples([2, 5], width=9, left=left)
    labelled = Samples(samples.inputs, "mask", labels=samples.inputs["ids"])
    for batch in labelled.batches(2):
        assert batch.labels.shape == (2, 5)
        np.testing.assert_array_equal(batch.labels, batch.feeds["ids"])


def test_take_and_select_keep_rows_together():
    samples = padded_samples([1, 2, 3], width=3)
    assert len(samples.take(2)) == 2
    assert len(samples.take(100)) == 3
    chosen = samples.select(np.array([2, 0]))
    np.testing.assert_array_equal(chosen.labels, [2, 0])
    np.testing.assert_array_equal(chosen.inputs["mask"].sum(axis=1), [3, 1])


@pytest.mark.parametrize(
    ("inputs", "mask", "labels", "message"),
    [
        ({}, None, None, "no input array"),
        ({"x": np.zeros((0, 2))}, None, None, "no samples"),
        ({"x": np.float32(1.0)}, None, None, "no samples"),
        ({"x": np.zeros(2), "y": np.zeros(3)}, None, None, "differ in their number"),
        ({"x": np.zeros(2)}, None, np.zeros(3), "differ in their number"),
        ({"x": np.zeros(2)}, None, np.int64(1), "differ in their number"),
        ({"x": np.zeros(2)}, "mask", None, "padding mask 'mask' is not among"),
        ({"x": np.zeros(2)}, "x", None, r"has shape \(2,\)"),
        ({"x": np.array(["a"])}, None, None, "not numbers"),
        ({"x": np.array([np.nan])}, None, None, "NaN or infinite"),
    ],
)
def test_arrays_that_are_no_samples_are_refused(inputs, mask, labels, message):
    arrays = {name: np.asarray(array) for name, array in inputs.items()}
    with pytest.raises(DataError, match=message):
        Samples(arrays, mask, None if labels is None else np.asarray(labels))


# --- npz -----------------------------------------------------------------------------------------


def load(spec, tmp_path, input_names, **options):
    arguments = {"tokenizer_dir": None, "mask": None, "seed": 0} | options
    return load_samples(spec, base_dir=tmp_path, input_names=input_names, **arguments)


def test_npz_with_labels_relative_to_the_recipe(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.arange(6.0).reshape(3, 2), y=np.arange(3))
    samples = load(NpzData(kind="npz", path="data.npz", labels="y"), tmp_path, ["x"])
    np.testing.assert_array_equal(samples.inputs["x"], np.arange(6.0).reshape(3, 2))
    np.testing.assert_array_equal(samples.labels, np.arange(3))
    assert "data.npz" in samples.origin


def test_compressed_npz_with_a_mask(tmp_path):
    ids = np.arange(6).reshape(2, 3)
    np.savez_compressed(tmp_path / "data.npz", ids=ids, mask=np.ones_like(ids))
    assert load_npz(tmp_path / "data.npz", mask="mask").mask_name == "mask"


def test_limit_is_a_seeded_subset_in_order(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.arange(100.0))
    spec = NpzData(kind="npz", path="data.npz", limit=10)
    one, same, other = (
        load(spec, tmp_path, ["x"], seed=seed).inputs["x"].tolist() for seed in (0, 0, 1)
    )
    assert one == same == sorted(set(one))
    assert len(one) == 10
    assert one != other


def test_names_that_do_not_match_the_model_are_refused(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.zeros(2), z=np.zeros(2))
    spec = NpzData(kind="npz", path="data.npz")
    for names in (["x"], ["x", "y"], ["x", "y", "z"]):
        with pytest.raises(DataError, match="the data has inputs x, z, the model wants"):
            load(spec, tmp_path, names)


def write_member(path, name, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)


def flip_a_value(path):
    content = path.read_bytes()
    path.write_bytes(content.replace(np.float64(500).tobytes(), np.float64(501).tobytes()))


def cut_the_array(path):
    write_member(path, "x.npy", zipfile.ZipFile(path).read("x.npy")[:200])


def save_npy(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def replace_with_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "folder": replace_with_folder,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:4000]),
    "empty": lambda path: path.write_bytes(b""),
    "flipped": flip_a_value,
    "short array": cut_the_array,
    "no array": lambda path: write_member(path, "x.txt", "hello"),
    "npy": save_npy,
    "objects": lambda path: np.savez(path, x=np.array([{"a": 1}], dtype=object)),
    "pickle": lambda path: path.write_bytes(pickle.dumps({"x": np.zeros(3)})),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_npz_is_one_line_that_names_the_file(tmp_path, damage):
    path = tmp_path / "data.npz"
    np.savez(path, x=np.arange(1000.0))
    DAMAGES[damage](path)
    with pytest.raises(DataError) as caught:
        load_npz(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_npz_that_unpacks_to_more_than_the_memory_is_not_unpacked(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros(100_000))
    assert load_npz(tmp_path / "bomb.npz")
    monkeypatch.setattr(npz, "memory_bytes", lambda: 700_000)
    with pytest.raises(DataError, match="more than this machine's memory"):
        load_npz(tmp_path / "bomb.npz")


def test_npz_without_the_named_labels(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.zeros(2))
    with pytest.raises(DataError, match="no labels 'y', only x"):
        load_npz(tmp_path / "data.npz", labels="y")


# --- masked words --------------------------------------------------------------------------------

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


# --- text ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    """A word-level tokenizer without token types, made on the spot."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("tokenizer")
    words = ["[PAD]", "[UNK]", "a", "b", "c", "d"]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def filling_tokenizer_dir(tmp_path_factory):
    """A WordPiece tokenizer with a mask token."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("filling")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", ".", "word", "##s", "two"]
    (folder / "vocab.txt").write_text("\n".join(tokens))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


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


# --- the datasets library ------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A local folder with one csv file."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "validation.csv").write_text(
        "sentence,other,label,score\na b c,d,1,0.5\nd,a,0,0.25\nb b,c,1,0.1\n"
    )
    return tmp_path


def hub_spec(**options):
    return HubData(kind="datasets", **({"path": "table", "text": "sentence"} | options))


def test_local_table_with_labels(table, tokenizer_dir):
    spec = hub_spec(label="label")
    samples = load(spec, table, TEXT_INPUTS, tokenizer_dir=tokenizer_dir, mask="attention_mask")
    np.testing.assert_array_equal(samples.inputs["input_ids"], [[2, 3, 4], [5, 0, 0], [3, 3, 0]])
    np.testing.assert_array_equal(samples.labels, [1, 0, 1])


def test_local_table_with_pairs_and_limit(table, tokenizer_dir):
    spec = hub_spec(text_pair="other", limit=2)
    samples = load(spec, table, TEXT_INPUTS, tokenizer_dir=tokenizer_dir)
    assert len(samples) == 2
    assert samples.inputs["attention_mask"].sum() > 4


def test_only_the_named_files_of_a_table_are_read(table, tokenizer_dir):
    (table / "table" / "train.csv").write_text("not,the,same,columns\n1,2,3,4\n")
    spec = hub_spec(files="validation*.csv", split="validation[:67%]")
    samples = load(spec, table, TEXT_INPUTS, tokenizer_dir=tokenizer_dir)
    np.testing.assert_array_equal(samples.inputs["input_ids"], [[2, 3, 4], [5, 0, 0]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": "nothing"}, "no column 'nothing', only sentence"),
        ({"text": "score"}, "not all text"),
        ({"text": None, "image": "sentence"}, "not all images"),
        ({"label": "score"}, "no class numbers"),
        ({"split": "nothing"}, "cannot load split 'nothing'"),
        ({"files": "none*.csv"}, "cannot load split 'validation'"),
    ],
)
def test_tables_that_do_not_fit(table, tokenizer_dir, options, message):
    with pytest.raises(DataError, match=message) as caught:
        load(hub_spec(**options), table, TEXT_INPUTS, tokenizer_dir=tokenizer_dir)
    assert "\n" not in str(caught.value)


def test_images_of_a_table_go_through_the_models_processor(tmp_path):
    datasets, transformers = (pytest.importorskip(m) for m in ("datasets", "transformers"))
    pil = pytest.importorskip("PIL.Image")
    transformers.ViTImageProcessor(
        do_resize=False, rescale_factor=1 / 16, image_mean=[0.5], image_std=[0.5]
    ).save_pretrained(tmp_path)
    grey = [np.full((8, 8), value, dtype=np.uint8) for value in (0, 16)]
    columns = {"image": [pil.fromarray(image) for image in grey], "label": [0, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    (tmp_path / "table").mkdir()
    datasets.Dataset.from_dict(columns, features).to_parquet(
        str(tmp_path / "table" / "validation.parquet")
    )
    spec = HubData(kind="datasets", path="table", image="image", label="label")
    samples = load(spec, tmp_path, ["pixel_values"], tokenizer_dir=tmp_path)
    np.testing.assert_allclose(samples.inputs["pixel_values"][:, 0, 0, 0], [-1, 1], atol=1e-6)
    assert samples.inputs["pixel_values"].shape == (2, 1, 8, 8)


@pytest.mark.slow
def test_hub_without_network_is_one_clear_line(tmp_path):
    pytest.importorskip("datasets")
    script = (
        "from pathlib import Path\n"
        "from graph_passes.errors import DataError\n"
        "from pipeline.data.hub import load_table\n"
        "try:\n"
        "    load_table('nobody/nothing', None, 'test', base_dir=Path())\n"
        "except DataError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert "cannot load split 'test' of data set 'nobody/nothing'" in result.stdout
    assert result.stdout.count("\n") == 1
