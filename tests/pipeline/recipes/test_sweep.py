"""A sweep tries every variant on the original model and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_models as small

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.recipe import Recipe
from compress_onnx.pipeline.recipes.single import ModelExperiment
from compress_onnx.pipeline.recipes.sweep import grid, sweep

METHODS = [MethodSpec(name="svd"), MethodSpec(name="asvd")]


def recipe(folder: Path) -> Recipe:
    small.save_external(small.perceptron(), folder / "model.onnx")
    small.save_rows(folder / "data.npz")
    data = {"kind": "npz", "path": "data.npz"}
    settings = {"calibration": data, "validation": data, "benchmark": None}
    return Recipe.model_validate({"name": "s", "source": {"model": "model.onnx"}, **settings})


def test_every_variant_is_a_row_in_order(tmp_path):
    variants = grid(CompressionSpec(rank_multiple=1), METHODS, {"params": [0.3, 0.6]}, [])
    rows = sweep(recipe(tmp_path), variants, base_dir=tmp_path).rows
    # The row says what the open allocation came to.
    said = [variant.model_copy(update={"allocation": "uniform"}) for variant in variants]
    assert [row.variant for row in rows] == said
    kept = [row.parameters_after for row in rows]
    assert kept[0] < kept[1]
    assert kept[2] < kept[3]
    assert all(row.outputs and row.size for row in rows)


def test_a_variant_without_gain_is_a_row_that_says_so(tmp_path):
    variants = [CompressionSpec(method=METHODS[0], rank=rank) for rank in (1000, 4)]
    rows = sweep(recipe(tmp_path), variants, base_dir=tmp_path).rows
    assert "would not be smaller" in rows[0].problem
    assert not rows[1].problem


def test_each_variant_has_an_empty_folder_that_goes(tmp_path, monkeypatch):
    folders = []
    write = ModelExperiment.write

    def watched(experiment, compressed, candidate):
        folders.append(candidate.parent)
        assert [folder for folder in folders if folder.exists()] == [candidate.parent]
        assert not list(candidate.parent.iterdir())
        return write(experiment, compressed, candidate)

    monkeypatch.setattr(ModelExperiment, "write", watched)
    sweep(recipe(tmp_path), grid(CompressionSpec(), METHODS, {}, []), base_dir=tmp_path)
    assert len(set(folders)) == 2
    assert not any(folder.exists() for folder in folders)


def test_a_grid_of_several_budgets():
    shares = {"params": [0.3], "bytes": [0.4, 0.5]}
    variants = grid(CompressionSpec(flops=0.9), METHODS[:1], shares, ["uniform"])
    assert [(v.budget, v.share) for v in variants] == [
        ("params", 0.3),
        ("bytes", 0.4),
        ("bytes", 0.5),
    ]
    assert grid(CompressionSpec(rank=4), METHODS[:1], {}, [])[0].rank == 4
    ranks = grid(CompressionSpec(params=0.9), METHODS[:1], {"rank": [4, 8]}, [])
    assert [(v.rank, v.params) for v in ranks] == [(4, None), (8, None)]


def test_a_share_out_of_range_is_refused():
    with pytest.raises(RequestError, match="params"):
        grid(CompressionSpec(), [], {"params": [1.5]}, [])
