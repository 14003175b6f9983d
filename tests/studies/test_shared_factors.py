"""The study of siblings compares like with like, and its document says what plans decided."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import small_models as small
from graphs import parameters
from studies import shared_factors
from studies.shared_factors import document, siblings_model

from compress_onnx.pipeline.runtime.session import open_session, run


@pytest.mark.parametrize("share", [0.5, 0.19])
def test_both_layouts_cost_what_factors_of_their_own_cost(share):
    feeds = {"x": np.ones((1, 5, 64), np.float32)}
    apart, products, split = (
        siblings_model(64, 96, 3, share, layout) for layout in ("apart", "products", "split")
    )
    assert parameters(products) == parameters(split)
    # Ranks are multiples of 8: a shared one costs 8·(K + 3N), three of their own 24·(K + N).
    assert abs(parameters(products) - parameters(apart)) < 24 * (64 + 96)
    for proto in (apart, products, split):
        found = run(open_session(proto.SerializeToString()), feeds)
        assert [found[f"y{i}"].shape for i in range(3)] == [(1, 5, 96)] * 3


def test_the_document_says_which_groups_were_made(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_ONNX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shared_factors, "SHAPES", ())
    small.save(small.encoder(), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", **small.sentences(count=40))
    data = {"kind": "npz", "path": "data.npz"}
    recipe = {
        "name": "tiny",
        "source": {"model": "model.onnx"},
        "mask": "attention_mask",
        "calibration": data,
        "validation": data,
        "compression": {"rank_multiple": 1},
    }
    (tmp_path / "tiny.yaml").write_text(json.dumps(recipe))
    text = document([Path(tmp_path / "tiny.yaml")], ["svd"], [0.5], "python study")
    assert "Written by `python study`" in text
    never, auto = (line.split(" | ") for line in text.splitlines() if line.startswith("| svd"))
    assert never[2:4] == ["never", "none"]
    assert auto[2] == "auto"
    assert "relative L2 0." in auto[5]
