"""Translation recipes, run as a user runs them on tiny models of random weights.

The references are what the model itself says in PyTorch: the original must score 100, an exact
candidate too, and whatever is damaged less.
"""

from __future__ import annotations

import json
import shutil

import hf_models
import numpy as np
import pytest
import yaml
from cli_runner import Cli, error_line

from compress_onnx.graph_passes.errors import CompressOnnxError, DataError
from compress_onnx.graph_passes.planning.plan import MethodSpec, read_plan
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.export.source import HubSource
from compress_onnx.pipeline.files.bundle import verify_manifest
from compress_onnx.pipeline.recipe import Recipe, SourceSpec
from compress_onnx.pipeline.recipes.experiment import settings_of
from compress_onnx.pipeline.report import read_report
from compress_onnx.pipeline.translate.experiment import prepare_translation
from compress_onnx.pipeline.translate.export_parts import export_encoder_decoder
from compress_onnx.pipeline.translate.generation import DECODER_MERGED, ENCODER, TextGenerator
from compress_onnx.pipeline.translate.languages import LanguageTokenizer

pytest.importorskip("optimum.onnxruntime")
pytest.importorskip("sacrebleu")
datasets = pytest.importorskip("datasets")

LANGUAGES = ("de", "fr")
BEAMS, TOKENS = 2, 10
CODES = {"de": "deu_Latn", "fr": "fra_Latn"}
PARALLEL = {"kind": "parallel", "path": "pairs", "languages": {"de": "de-en", "fr": "en-fr"}}
GENERATION = {"kind": "translation", "beams": BEAMS, "max_new_tokens": TOKENS}
BY_PROMPT = GENERATION | {"prompt": ">>{language}<< {source}"}
BY_TOKEN = GENERATION | {"source_language": "eng_Latn", "codes": CODES}
FULL = {"method": {"name": "svd"}, "rank": 32, "allow_larger": True}
RECIPE = {
    "name": "tiny",
    "source": {"model": "marian", "opset": 18},
    "calibration": PARALLEL | {"split": "train"},
    "validation": PARALLEL,
    "metric": BY_PROMPT,
    "compression": {"method": {"name": "asvd"}, "rank": 8},
    "gates": [{"quantity": "bleu_drop", "max": 1.0}],
    "benchmark": {"provider": "cpu", "threads": 1},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two tiny models: one reads the target language, one is forced to begin with it."""
    root = tmp_path_factory.mktemp("models")
    hf_models.save(hf_models.marian(), root / "marian")
    hf_models.save_words(root / "marian", ">>de<<", ">>fr<<")
    hf_models.save(hf_models.m2m100(), root / "nllb")
    hf_models.save_nllb_words(root / "nllb", "eng_Latn", *CODES.values())
    return root


@pytest.fixture(scope="module")
def exported(models):
    """The graphs of the models, exported once."""
    folders = {}
    for name in ("marian", "nllb"):
        folders[name] = models / f"{name}-onnx"
        folders[name].mkdir()
        spec = SourceSpec(model=name, opset=18)
        folders[name] = export_encoder_decoder(models / name, spec, folders[name])
    return folders


@pytest.fixture
def reused(exported, monkeypatch):
    """Exports of the tiny models are copies of those that there are."""

    def copy(checkpoint, spec, folder, *, seed):
        parts = exported[checkpoint.name]
        shutil.copytree(parts.folder, folder, dirs_exist_ok=True)
        return type(parts)(folder, parts.report, parts.notes)

    monkeypatch.setattr("compress_onnx.pipeline.translate.experiment.export_encoder_decoder", copy)


@pytest.fixture
def root(models, tmp_path, monkeypatch):
    """A recipe's folder, with the models and with pairs that they translate perfectly."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("COMPRESS_ONNX_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "recipe"
    folder.mkdir()
    for name in ("marian", "nllb"):
        (folder / name).symlink_to(models / name)
    save_pairs(folder, "marian", BY_PROMPT)
    return folder


def save_pairs(folder, model, metric):
    rng = np.random.default_rng(0)
    for language, configuration in PARALLEL["languages"].items():
        (folder / "pairs" / configuration).mkdir(parents=True, exist_ok=True)
        for split, count in (("train", 40), ("test", 6)):
            sources = [
                " ".join(f"w{n}" for n in rng.integers(3, 90, size=rng.integers(2, 8)))
                for _ in range(count)
            ]
            targets = said_by_torch(folder / model, metric, language, sources)
            rows = zip(sources, targets, strict=True)
            lines = [json.dumps({"translation": {"en": s, language: t}}) for s, t in rows]
            path = folder / "pairs" / configuration / f"{split}.jsonl"
            path.write_text("\n".join(lines))


def said_by_torch(checkpoint, metric, language, sources):
    """What the model says in PyTorch, told the language as its documentation has it."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model = AutoModelForSeq2SeqLM.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    settings = {"num_beams": BEAMS, "max_new_tokens": TOKENS}
    if "prompt" in metric:
        sources = [f">>{language}<< {source}" for source in sources]
    else:
        tokenizer.src_lang = "eng_Latn"
        settings["forced_bos_token_id"] = tokenizer.convert_tokens_to_ids(CODES[language])
    inputs = tokenizer(sources, padding=True, return_tensors="pt")
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        return tokenizer.batch_decode(model.generate(**inputs, **settings), True)


@pytest.fixture
def cli(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    return Cli(capsys, monkeypatch)


def written(folder, **changes):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | changes))
    return path


def prepared(root, folder, **changes):
    folder.mkdir(exist_ok=True)
    recipe = Recipe.model_validate(RECIPE | changes)
    return prepare_translation(recipe, folder, base_dir=root, settings=settings_of(recipe))


@pytest.mark.slow
def test_a_run_leaves_a_bundle_that_translates(root, cli, tmp_path):
    gates = [{"quantity": "bleu_drop", "max": 0.0}, {"quantity": "bleu_reference.fr", "min": 99}]
    recipe = written(root, compression=FULL, gates=gates)
    bundle = tmp_path / "bundle"

    printed = cli("run", recipe, "-o", bundle).out

    files = verify_manifest(bundle).files
    expected = {ENCODER, DECODER_MERGED, "config.json", "report.json", "summary.md", "README.md"}
    assert expected <= files.keys()
    report = read_report(bundle)
    assert report.passed
    assert report.reference.mean.bleu == pytest.approx(100)
    assert report.candidate == report.reference
    assert set(report.candidate.languages) == set(LANGUAGES)
    assert report.export.parity
    assert report.timing.reference_s > 0
    assert report.timing.length_ratio == 1
    assert [read_plan(bundle / f"{part}-plan.json") for part in ("encoder", "decoder")] == [
        report.encoder,
        report.decoder,
    ]
    assert report.validation == "12 pairs of pairs, test split, into de, fr"
    assert "mean" in printed
    assert cli("report", bundle).out == (bundle / "summary.md").read_text() + "\n"
    sources = ["w5 w6 w7", "w40 w41"]
    asked = [f">>de<< {source}" for source in sources]
    found = TextGenerator(bundle).generate(asked, beams=BEAMS, max_new_tokens=TOKENS)
    assert found == said_by_torch(root / "marian", BY_PROMPT, "de", sources)


@pytest.mark.slow
def test_a_damaged_candidate_fails_the_gate(root, reused, cli, tmp_path):
    bundle = tmp_path / "bundle"

    cli("run", written(root), "-o", bundle, code=1)

    verify_manifest(bundle)
    report = read_report(bundle)
    (gate,) = report.gates
    assert gate.value == report.reference.mean.bleu - report.candidate.mean.bleu > 1
    assert report.candidate.mean.chrf < report.reference.mean.chrf
    assert report.size.candidate_bytes < report.size.reference_bytes
    assert len(set(report.notes)) == len(report.notes)  # both parts have most of them
    assert report.calibration == "80 pairs of pairs, train split, into de, fr"
    assert "FAILED" in cli("report", bundle, code=1).out


@pytest.mark.slow
def test_what_is_trained_translates_better(root, reused, cli, tmp_path):
    recovery = {"budget": None, "steps": 300, "train": "factors", "pooled": 0, "labels": 1.0}
    recovery["data"] = PARALLEL | {"split": "train"}
    bundles = [tmp_path / name for name in ("as it is", "trained")]
    cli("run", written(root), "-o", bundles[0], code=1)
    cli("run", written(root, recovery=recovery), "-o", bundles[1], code=1)

    before, after = (read_report(bundle) for bundle in bundles)
    assert before.recovery is None
    assert after.recovery.steps == 300
    assert after.recovery.end_loss < 0.85 * after.recovery.start_loss
    assert after.recovery.compared == ("logits",)
    assert after.candidate.mean.chrf > before.candidate.mean.chrf
    assert after.encoder == before.encoder  # plans are of compression alone
    assert "Recovery: loss on held-out batches" in (bundles[1] / "summary.md").read_text()
    verify_manifest(bundles[1])


@pytest.mark.slow
def test_exit_codes_say_what_went_wrong(root, reused, cli, tmp_path):
    bundle = tmp_path / "bundle"
    too_large = {"method": {"name": "svd"}, "rank": 999}
    cli("run", written(root, compression=too_large), "-o", bundle, code=3)
    unknown = PARALLEL | {"languages": {"xx": "de-en"}}
    refused = cli("run", written(root, validation=unknown), "-o", bundle, code=2)
    assert "no sentences in 'xx', only in de, en" in error_line(refused)
    refused = cli("run", written(root), "-o", bundle, "--max-drop", "0.1", code=2)
    assert "max_drop does not apply" in error_line(refused)
    refused = cli("analyze", written(root), code=2)
    assert "analyze takes models of one graph" in error_line(refused)
    assert not bundle.exists()


@pytest.mark.slow
def test_a_sweep_has_a_row_for_each_variant(root, reused, cli):
    arguments = ("-m", "svd", "-p", "0.3", "-p", "1", "--rank-multiple", "1", "--allow-larger")
    table = cli("sweep", written(root), *arguments).out
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| svd")]
    bleu = [float(row[6]) for row in rows]
    assert len(rows) == 2
    assert bleu[0] < bleu[1] <= 100


@pytest.mark.slow
def test_a_forced_token_names_the_language(root, reused, tmp_path):
    save_pairs(root, "nllb", BY_TOKEN)
    source = {"model": "nllb", "opset": 18}
    experiment = prepared(root, tmp_path / "x", source=source, metric=BY_TOKEN)

    texts = experiment.translate(experiment.reference)

    assert experiment.scores(texts).mean.bleu == pytest.approx(100)
    swapped = BY_TOKEN | {"codes": {"de": CODES["fr"], "fr": CODES["de"]}}
    other = prepared(root, tmp_path / "y", source=source, metric=swapped)
    assert other.translate(other.reference) != texts
    beginnings = experiment.learned.decoder.samples.inputs["input_ids"]
    names = experiment.languages.tokenizer.convert_ids_to_tokens(beginnings[:, 1])
    assert set(names) == set(CODES.values())
    (tmp_path / "candidate").mkdir()
    request = CompressionSpec(method=MethodSpec(name="asvd"), rank=32, allow_larger=True)
    experiment.compress(request, tmp_path / "candidate")
    assert experiment.translate(tmp_path / "candidate") == texts


@pytest.mark.slow
def test_a_prompt_names_the_language(root, reused, tmp_path):
    texts = {}
    for name, codes in {"as asked": {}, "swapped": {"de": "fr", "fr": "de"}}.items():
        metric = BY_PROMPT | {"codes": codes}
        experiment = prepared(root, tmp_path / name, metric=metric, calibration=None)
        texts[name] = experiment.translate(experiment.reference)
    assert experiment.scores(texts["as asked"]).mean.bleu == pytest.approx(100)
    assert experiment.scores(texts["swapped"]).mean.bleu < 90


@pytest.mark.slow
def test_the_hubs_name_of_the_model_is_kept(root, reused, tmp_path, monkeypatch):
    module = "compress_onnx.pipeline.translate.experiment"
    monkeypatch.setattr(f"{module}.resolve_source", lambda *_: HubSource("org/marian"))
    monkeypatch.setattr(f"{module}.checkpoint_of", lambda *_: root / "marian")
    experiment = prepared(root, tmp_path / "x", calibration=None)
    assert experiment.exported.report.hub_id == "org/marian"


@pytest.mark.slow
def test_both_models_race_on_the_same_sentences(root, reused, tmp_path):
    experiment = prepared(root, tmp_path / "x", calibration=None, batch_size=4)

    texts = experiment.race(experiment.reference)

    assert texts.candidate == texts.reference == experiment.translate(experiment.reference)
    timing = texts.timing
    assert timing.speedup == pytest.approx(timing.reference_s / timing.candidate_s)
    assert timing.speedup_low <= timing.speedup <= timing.speedup_high
    assert timing.reference_texts_per_s == pytest.approx(12 / timing.reference_s)


REFUSED = {
    "held-out recovery": (
        {"recovery": {"held_out": PARALLEL | {"split": "train"}}},
        "drop held_out",
    ),
    "recovery of rounded factors": (
        {"recovery": {}, "compression": {"params": 0.5, "store": "int8"}},
        "the store int8 rounds them",
    ),
    "recovery without pairs": (
        {"recovery": {"data": {"kind": "npz", "path": "x.npz"}}},
        "sentences with their translations",
    ),
    "max drop": ({"max_drop": 0.1}, "max_drop does not apply"),
    "mask": ({"mask": "attention_mask"}, "mask does not apply"),
    "flops": ({"compression": {"flops": 0.5}}, "a budget of FLOPs does not apply"),
    "latency": ({"compression": {"latency": 0.5}}, "a budget of latency does not apply"),
    "siblings": ({"compression": {"siblings": "auto"}}, "siblings cannot share"),
    "iterations": ({"benchmark": {"iterations": 9}}, "drop iterations from benchmark"),
    "cuda": ({"benchmark": {"provider": "cuda"}}, "drop provider cuda from benchmark"),
    "openvino": ({"benchmark": {"provider": "openvino"}}, "drop provider openvino from benchmark"),
    "no data": ({"validation": None}, "add validation"),
    "no pairs": ({"validation": {"kind": "npz", "path": "x.npz"}}, "kind npz has no translations"),
    "no model": ({"source": {"model": "some.onnx"}}, "use a Hugging Face model"),
    "no language": ({"metric": GENERATION}, "nothing tells the model which of de, fr"),
    "no tokenizer's language": ({"metric": BY_TOKEN}, "knows no source language"),
    "unknown code": (
        {"metric": BY_PROMPT | {"codes": {"fr": "xx"}}},
        "knows no language 'xx'",
    ),
    "code": (
        {"validation": {"kind": "python", "loader": "os:getcwd"}},
        "runs Python code, os:getcwd",
    ),
    "another metric": ({"metric": {"kind": "accuracy"}}, "needs the metric translation"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_apply_is_refused_in_one_line(root, tmp_path, case):
    changes, message = REFUSED[case]
    with pytest.raises(CompressOnnxError, match=message) as refused:
        prepared(root, tmp_path / "x", **changes)
    assert "\n" not in str(refused.value)
    assert not list((tmp_path / "x").iterdir())


def test_a_folder_of_pairs_is_read_evenly(root):
    from compress_onnx.pipeline.data.parallel import load_pairs

    def load(**changes):
        spec = Recipe.model_validate(RECIPE | {"validation": PARALLEL | changes}).validation
        return load_pairs(spec, base_dir=root, seed=0)

    pairs = load()
    assert [pair.language for pair in pairs] == ["de"] * 6 + ["fr"] * 6
    limited = load(limit=5)
    assert [pair.language for pair in limited] == ["de"] * 3 + ["fr"] * 3
    assert set(limited) < set(pairs)
    assert load(limit=5) == limited
    with pytest.raises(DataError, match="'nl', only in de, en"):
        load(languages={"nl": "de-en"})
    with pytest.raises(DataError, match="no column 'text'"):
        load(column="text")
    with pytest.raises(DataError, match="cannot load split 'dev'"):
        load(split="dev")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "{source}", "source_language": "en"}, "exclude each other"),
        ({"prompt": ">>{language}<<"}, "needs {source}"),
    ],
)
def test_a_metric_that_contradicts_itself(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate(RECIPE | {"metric": GENERATION | changes})


def test_a_sentence_may_contain_what_looks_like_a_place_to_fill(models):
    from compress_onnx.pipeline.data.pairs import SentencePair

    metric = Recipe.model_validate(RECIPE).metric
    languages = LanguageTokenizer(models / "marian", metric)
    pair = SentencePair("de", "say {language} and {source}", "")
    assert languages.prompt(pair) == ">>de<< say {language} and {source}"
