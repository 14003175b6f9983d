"""Several languages translated into one, as SALT's recipes do, on tiny models and folders."""

from __future__ import annotations

import json

import hf_models
import numpy as np
import pytest

from compress_onnx.graph_passes.errors import DataError, MissingDependencyError, RequestError
from compress_onnx.pipeline.data.pairs import SentencePair
from compress_onnx.pipeline.data.parallel import load_pairs, origin_of
from compress_onnx.pipeline.recipe import ParallelData, Recipe, TranslationMetric
from compress_onnx.pipeline.recipes.run import run_recipe
from compress_onnx.pipeline.translate.languages import LanguageTokenizer

datasets = pytest.importorskip("datasets")

CODES = {"lug": "lug_Latn", "ach": "luo_Latn"}
NESTED = {
    "kind": "parallel",
    "path": "salt",
    "languages": dict.fromkeys(CODES),
    "target": "eng",
    "column": "text",
}
INTO_ENGLISH = {"kind": "translation", "target_language": "eng_Latn", "codes": CODES}


def said(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{n}" for n in rng.integers(3, 80, size=6)) for _ in range(count)]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder with SALT's files of the layout that has all languages in one column."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("COMPRESS_ONNX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "salt").mkdir()
    for split, count in (("dev", 40), ("test", 4)):
        texts = {language: said(count, seed) for seed, language in enumerate(("eng", *CODES))}
        rows = [{"text": {name: texts[name][row] for name in texts}} for row in range(count)]
        path = tmp_path / "salt" / f"salt-{split}-v1.2.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path


def data(**changes: object) -> ParallelData:
    return ParallelData.model_validate(NESTED | changes)


def test_each_language_is_the_source_and_the_target_is_one(root):
    pairs = load_pairs(data(), base_dir=root, seed=0)

    assert [pair.language for pair in pairs] == ["lug"] * 4 + ["ach"] * 4
    assert {pair.into for pair in pairs} == {"eng"}
    assert [pair.source for pair in pairs] == said(4, 1) + said(4, 2)
    assert [pair.target for pair in pairs] == said(4, 0) * 2
    assert origin_of(data(), pairs) == "8 pairs of salt, test split, from lug, ach into eng"
    assert len(load_pairs(data(split="dev"), base_dir=root, seed=0)) == 80


def test_each_language_may_have_a_column_in_the_folder_of_its_configuration(root):
    (root / "hub" / "text-all").mkdir(parents=True)
    rows = [{"id": n, "eng_text": f"e{n}", "lug_text": f" l{n} "} for n in range(5)]
    path = root / "hub" / "text-all" / "dev-00000-of-00001.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    columns = {"path": "hub", "column": "{language}_text", "split": "dev[:2]"}

    pairs = load_pairs(data(languages={"lug": "text-all"}, **columns), base_dir=root, seed=0)

    assert pairs == [SentencePair("lug", f"l{n}", f"e{n}", "eng") for n in range(2)]
    with pytest.raises(DataError, match="no column 'nyn_text'"):
        load_pairs(data(languages={"nyn": "text-all"}, **columns), base_dir=root, seed=0)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (ParallelData, NESTED | {"source": "en"}),
        (TranslationMetric, INTO_ENGLISH | {"source_language": "eng_Latn"}),
        (TranslationMetric, INTO_ENGLISH | {"prompt": "{source}"}),
    ],
)
def test_one_side_is_common_to_all_pairs(kind, changes):
    with pytest.raises(ValueError, match="exclude each other"):
        kind.model_validate(changes)


@pytest.fixture(scope="module")
def nllb(tmp_path_factory):
    """A tiny model with tokens for its languages."""
    folder = tmp_path_factory.mktemp("models") / "nllb"
    hf_models.save(hf_models.m2m100(), folder)
    hf_models.save_nllb_words(folder, "eng_Latn", *CODES.values())
    return folder


def test_the_source_is_marked_and_the_target_is_forced(nllb):
    languages = LanguageTokenizer(nllb, TranslationMetric.model_validate(INTO_ENGLISH))
    pairs = [SentencePair(language, "w5 w6", "w7", "eng") for language in ("lug", "ach", "lug")]
    pairs[1] = SentencePair("ach", "w5 w6 w8 w9", "w7 w8", "eng")
    tokenizer = languages.tokenizer

    languages.require(pairs)
    sources = languages.sources(pairs, 16)

    marks = tokenizer.convert_ids_to_tokens(sources["input_ids"][:, 0])
    assert marks == ["lug_Latn", "luo_Latn", "lug_Latn"]
    assert sources["input_ids"].shape == (3, 6)
    assert sources["attention_mask"].sum(axis=1).tolist() == [4, 6, 4]
    for tokens in languages.targets(pairs, 16):
        assert tokenizer.convert_ids_to_tokens(tokens)[0] == "eng_Latn"
    assert languages.turn_to(pairs[1]) == tokenizer.convert_tokens_to_ids("eng_Latn")
    assert tokenizer.convert_ids_to_tokens(tokenizer("w5")["input_ids"])[0] == "luo_Latn"


def test_languages_that_cannot_be_told_are_refused(nllb):
    languages = LanguageTokenizer(nllb, TranslationMetric.model_validate(INTO_ENGLISH))
    with pytest.raises(DataError, match="knows no language 'nyn'"):
        languages.require([SentencePair("nyn", "w5", "w6", "eng")])
    with pytest.raises(RequestError, match="give one side in both"):
        languages.require([SentencePair("lug", "w5", "w6")])
    from_english = TranslationMetric(kind="translation", source_language="eng_Latn", codes=CODES)
    with pytest.raises(RequestError, match="give one side in both"):
        LanguageTokenizer(nllb, from_english).require([SentencePair("lug", "w5", "w6", "eng")])
    unknown = TranslationMetric.model_validate(INTO_ENGLISH | {"target_language": "eng_Xxxx"})
    with pytest.raises(DataError, match="knows no language 'eng_Xxxx'"):
        LanguageTokenizer(nllb, unknown)


@pytest.mark.slow
def test_a_marian_into_one_language_needs_to_be_told_none(root):
    """With the files that the hub has of a Marian: two SentencePiece models and a vocabulary."""
    pytest.importorskip("optimum.onnxruntime")
    pytest.importorskip("sacrebleu")
    pytest.importorskip("sentencepiece", reason="Marian's own tokenizer needs sentencepiece")
    hf_models.save(hf_models.marian(), root / "marian")
    save_marian_tokenizer(root / "marian")
    recipe = Recipe.model_validate(
        {
            "name": "tiny-salt",
            "source": {"model": "marian", "opset": 18},
            "calibration": NESTED | {"split": "dev"},
            "validation": NESTED,
            "metric": {"kind": "translation", "max_new_tokens": 5},
            "compression": {"method": {"name": "asvd"}, "rank": 8},
            "benchmark": None,
        }
    )

    report = run_recipe(recipe, root / "bundle", base_dir=root)

    assert list(report.candidate.languages) == list(CODES)
    assert report.validation == "8 pairs of salt, test split, from lug, ach into eng"
    assert {site.rank for site in report.encoder.factored} == {8}


def save_marian_tokenizer(folder):
    import sentencepiece
    import transformers

    sentences = said(200, 9)
    (folder.parent / "text").write_text("\n".join(sentences))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder.parent / "text"),
        model_prefix=str(folder / "source"),
        vocab_size=40,
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "source.model").rename(folder / "source.spm")
    (folder / "target.spm").write_bytes((folder / "source.spm").read_bytes())
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "source.spm"))
    known = [pieces.id_to_piece(n) for n in range(pieces.get_piece_size())]
    words = ["<pad>", "</s>", "<unk>", *(p for p in known if not p.startswith("<"))]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    transformers.MarianTokenizer(
        source_spm=str(folder / "source.spm"),
        target_spm=str(folder / "target.spm"),
        vocab=str(folder / "vocab.json"),
    ).save_pretrained(folder)


def test_without_sentencepiece_a_marian_is_refused_in_one_line(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    if transformers.utils.is_sentencepiece_available():
        pytest.skip("sentencepiece is installed")
    hf_models.save(hf_models.marian(), tmp_path / "marian")
    for name in ("source.spm", "target.spm", "vocab.json"):
        (tmp_path / "marian" / name).write_text("{}")
    (tmp_path / "marian" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "MarianTokenizer"})
    )
    with pytest.raises(MissingDependencyError, match=r"needs: .*SentencePiece") as refused:
        LanguageTokenizer(tmp_path / "marian", TranslationMetric(kind="translation"))
    assert "\n" not in str(refused.value)
