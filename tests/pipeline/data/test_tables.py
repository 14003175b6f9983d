"""Samples from tables of the datasets library: text, pairs, images."""

import os
import subprocess
import sys

import numpy as np
import pytest
from loading import TEXT_INPUTS, load

from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.recipe import HubData


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
        "from compress_onnx.graph_passes.errors import DataError\n"
        "from compress_onnx.pipeline.data.hub import load_table\n"
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
