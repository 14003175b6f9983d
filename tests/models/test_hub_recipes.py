"""The recipes of hub models, run as they are on tiny folders that stand in for the hub.

A model or data set that a recipe names is taken from a folder beside the recipe where there is one,
so the stand-ins need only have the names and the layout of what is on the hub.
"""

from __future__ import annotations

from pathlib import Path

import hf_models
import numpy as np
import pytest
from cli_runner import start
from studies.reproduction import attention, fine_tuning, translation, workplace

from compress_onnx.pipeline.recipe import (
    HubData,
    MaskedData,
    ParallelData,
    Recipe,
    RecoverySpec,
    TranslationMetric,
    read_recipe,
)
from compress_onnx.pipeline.recipes.run import run_recipe

pytestmark = pytest.mark.slow

HUB = Path(__file__).parents[2] / "models" / "hub"
RECIPES = sorted(path.stem for path in HUB.glob("*.yaml"))
TRANSLATING = [name for name in RECIPES if name.startswith("translation-")]
ONE_GRAPH = [name for name in RECIPES if name not in TRANSLATING]
ROWS = 40
LANGUAGES = {"de": "de-en", "es": "en-es", "fr": "en-fr", "it": "en-it", "pt": "en-pt"}
SALT = ("ach", "teo", "lug", "lgg", "nyn", "eng")
WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "ate", "two", "rats", "at", "last", "here")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder with all models and data sets that the recipes name."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("nateraw/vit-base-patch16-224-cifar10", "google/vit-base-patch16-224"):
        save_vit(tmp_path / name)
    save_bert(tmp_path / "google-bert" / "bert-large-uncased-whole-word-masking")
    for split in ("train", "test"):
        save_table(tmp_path / "uoft-cs" / "cifar10", split, images("img"))
    save_table(tmp_path / "ILSVRC" / "imagenet-1k", "validation", images("image"))
    save_table(tmp_path / "ILSVRC" / "imagenet-1k", "train", {"not": ["to", "be", "read"]})
    for split in ("train", "validation_matched", "validation_mismatched"):
        save_table(tmp_path / "nyu-mll" / "multi_nli", split, pairs(split))
    save_translators(tmp_path)
    return tmp_path


def save_vit(folder: Path) -> None:
    """One layer wide enough for the ranks that the recipes ask for."""
    import transformers

    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 1}
    shape = {"image_size": 32, "patch_size": 16, "num_channels": 3, "num_labels": 10}
    hf_models.save(hf_models.vit(**sizes, **shape), folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def save_bert(folder: Path) -> None:
    import transformers

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS]
    sizes = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": len(tokens)}
    hf_models.save(hf_models.bert("BertForMaskedLM", **sizes), folder)
    (folder / "vocab.txt").write_text("\n".join(tokens))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)


def save_translators(root: Path) -> None:
    """Models of words that are numbers, and such sentences as the hub's data set has them."""
    t5 = hf_models.save(hf_models.t5(), root / "google" / "madlad400-3b-mt")
    hf_models.save_words(t5, *(f"<2{language}>" for language in LANGUAGES))
    codes = read_recipe(HUB / "translation-nllb.yaml").metric.codes
    nllb = hf_models.save(hf_models.m2m100(), root / "facebook" / "nllb-200-distilled-600M")
    hf_models.save_nllb_words(nllb, "eng_Latn", *codes.values())
    marian = hf_models.save(hf_models.marian(160), root / "Sunbird" / "sunbird-mul-en")
    hf_models.save_words(marian)
    codes = read_recipe(HUB / "translation-salt-nllb.yaml").metric.codes
    salt = hf_models.save(hf_models.m2m100(), root / "Sunbird" / "translate-nllb-1.3b-salt")
    hf_models.save_nllb_words(salt, "eng_Latn", *codes.values())
    rng = np.random.default_rng(0)

    def sentences(rows: int) -> list[str]:
        return [" ".join(f"w{n}" for n in rng.integers(3, 80, size=6)) for _ in range(rows)]

    for split, rows in (("dev", ROWS), ("test", 3)):
        path = root / "Sunbird" / "salt" / "text-all" / f"{split}-00000-of-00001.parquet"
        save_parquet(path, {f"{language}_text": sentences(rows) for language in SALT})
    for language, name in LANGUAGES.items():
        for split, rows in (("validation", ROWS), ("test", 3)):
            pairs = [{"en": text, language: text} for text in sentences(rows)]
            path = root / "Helsinki-NLP" / "opus-100" / name / f"{split}-00000-of-00001.parquet"
            save_parquet(path, {"translation": pairs})


def save_table(folder: Path, split: str, columns: dict[str, list]) -> None:
    save_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", columns)


def save_parquet(path: Path, columns: dict[str, list]) -> None:
    import datasets

    datasets.Dataset.from_dict(columns).to_parquet(str(path))


def images(column: str) -> dict[str, list]:
    pil = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(256, size=(ROWS, 32, 32, 3), dtype=np.uint8)
    labels = [row % 10 for row in range(ROWS)]
    return {column: [pil.fromarray(image) for image in pixels], "label": labels}


def pairs(split: str) -> dict[str, list]:
    rng = np.random.default_rng(len(split))
    premises = [" ".join(rng.permutation(WORDS)[:8]) + "." for _ in range(ROWS)]
    return {"premise": premises, "hypothesis": premises, "label": [0] * ROWS}


def shortened(recipe: Recipe) -> Recipe:
    """The recipe without what takes long: latency, and hours of training."""
    recovery = recipe.recovery and RecoverySpec(budget=None, steps=2)
    return recipe.model_copy(update={"benchmark": None, "recovery": recovery})


def data_of(recipe: Recipe) -> list[HubData | ParallelData]:
    specs = [recipe.calibration, recipe.validation]
    return [spec.sentences if isinstance(spec, MaskedData) else spec for spec in specs]


def test_there_is_a_recipe_for_each_published_experiment():
    assert RECIPES == [
        "bert-multinli",
        "bert-multinli-attention",
        "translation-madlad",
        "translation-nllb",
        "translation-salt",
        "translation-salt-nllb",
        "vit-cifar10",
        "vit-imagenet",
        "vit-imagenet-attention",
    ]


@pytest.mark.parametrize("name", RECIPES)
def test_calibration_and_validation_read_different_rows(name):
    calibration, validation = data_of(read_recipe(HUB / f"{name}.yaml"))
    assert calibration.path == validation.path
    assert calibration.split != validation.split


@pytest.mark.parametrize("name", ONE_GRAPH)
def test_the_recipe_runs_on_what_stands_in_for_the_hub(hub, name):
    recipe = read_recipe(HUB / f"{name}.yaml")

    report = run_recipe(shortened(recipe), hub / "bundle", base_dir=hub)

    assert report.validation.samples >= 30
    assert 0 < report.validation.outputs[0].relative_l2 < 2
    assert "accuracy_drop" in report.validation.metrics
    factored = {site.site for site in report.plan.factored}
    assert factored
    if "attention" in name:
        assert all(".attention." in site for site in factored)
    else:
        assert any(".attention." not in site for site in factored)
    assert not any(site.startswith(("classifier", "cls.")) for site in factored)
    assert (report.recovery is not None) == (recipe.recovery is not None)


@pytest.mark.parametrize(
    ("experiment", "recipe", "trained"),
    [
        (translation.run, "translation-salt", False),
        (attention.run_bert, "bert-multinli-attention", False),
        (fine_tuning.run_bert, "bert-multinli", True),
    ],
)
def test_the_study_runs_the_published_set_up(hub, monkeypatch, experiment, recipe, trained):
    monkeypatch.setattr(workplace, "MODELS", hub)
    (hub / "hub").symlink_to(hub)
    (hub / f"{recipe}.yaml").write_text((HUB / f"{recipe}.yaml").read_text())
    work, pictures = hub / "work", hub / "pictures"
    work.mkdir()
    pictures.mkdir()

    section = experiment(workplace.Workplace(work, pictures, quick=True, published=True))

    assert f"models/hub/{recipe}.yaml" in section.twin
    assert ("3 steps" in section.twin) == trained
    assert section.tables[0].rows
    assert all((pictures / picture.file).is_file() for picture in section.pictures)


@pytest.mark.parametrize("name", TRANSLATING)
def test_a_translation_recipe_runs_on_what_stands_in_for_the_hub(hub, name):
    recipe = read_recipe(HUB / f"{name}.yaml")
    assert isinstance(recipe.metric, TranslationMetric)
    changes: dict[str, object] = {"metric": recipe.metric.model_copy(update={"max_new_tokens": 5})}
    if recipe.compression.rank is not None:  # of models that are wider
        changes["compression"] = recipe.compression.model_copy(update={"rank": 8})

    report = run_recipe(recipe.model_copy(update=changes), hub / "bundle", base_dir=hub)

    assert isinstance(recipe.validation, ParallelData)
    assert list(report.candidate.languages) == list(recipe.validation.languages)
    assert report.candidate.mean.sentences == 3 * len(recipe.validation.languages)
    ranks = {site.rank for part in (report.encoder, report.decoder) for site in part.factored}
    assert recipe.compression.rank is None or ranks == {8}
    assert report.encoder.factored
    assert report.decoder.factored
    assert not any("lm_head" in site.site for site in report.decoder.factored)
    assert "pipeline_tag: translation" in (hub / "bundle" / "README.md").read_text()


@pytest.mark.parametrize("missing", ["model", "data"])
def test_without_a_network_there_is_one_line(tmp_path, monkeypatch, missing):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    recipe = tmp_path / "vit-cifar10.yaml"
    recipe.write_text((HUB / recipe.name).read_text())
    if missing == "data":
        save_vit(tmp_path / "nateraw" / "vit-base-patch16-224-cifar10")

    done = start("run", recipe, "-o", tmp_path / "out", code=2)

    wanted = {"model": "nateraw/vit-base-patch16-224-cifar10", "data": "uoft-cs/cifar10"}
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert wanted[missing] in line
    assert "cannot be reached" in line
    assert not (tmp_path / "out").exists()
