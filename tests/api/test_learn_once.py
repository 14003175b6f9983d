"""Learned once: nothing is decomposed, loaded or digested again for another budget, by counting."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import small_models as small
from cli_runner import Cli

import compress_onnx
from compress_onnx.graph_passes.factorization import METHODS
from compress_onnx.graph_passes.planning import decompositions, factoring
from compress_onnx.pipeline.compress.compressed import Compressed
from compress_onnx.pipeline.compress.learn import Learned
from compress_onnx.pipeline.files import model_file, original
from compress_onnx.pipeline.runtime import session as sessions

WEIGHTS = 3


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COMPRESS_ONNX_CACHE", str(tmp_path / "cache"))
    small.save(small.encoder(), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", **small.sentences(60))
    return tmp_path


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often weights are decomposed, files loaded and digested, sessions opened."""
    seen: Counter[str] = Counter()

    def counted(owner: object, name: str, what: str) -> None:
        real = getattr(owner, name)

        def call(*args: object, **kwargs: object) -> object:
            seen[what] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    for place in (decompositions, factoring):
        counted(place, "decompose", "decompositions of weights")
        counted(place, "least_errors", "spectra of weights")
    counted(original, "content_digest", "digests")
    counted(original, "load_model", "loads of the original")
    counted(Learned, "compress", "compressions")
    counted(Compressed, "write", "files written")
    counted(sessions.ort, "InferenceSession", "sessions")
    return seen


@pytest.mark.parametrize("method", ["svd", "asvd", "auto"])
def test_a_search_decomposes_each_weight_once(folder, counts, method, capsys, monkeypatch):
    Cli(capsys, monkeypatch)(
        *("compress", folder / "model.onnx", "-o", folder / "small.onnx", "-m", method),
        *("-c", folder / "data.npz", "--max-drop", "0.2", "--no-cache", "--rank-multiple", "1"),
    )

    assert counts["decompositions of weights"] == WEIGHTS
    # Of each weight in the metric of the calibration data, and in that of what is held out of it.
    assert counts["spectra of weights"] <= 2 * WEIGHTS
    assert counts["digests"] <= 1
    assert counts["loads of the original"] == 1
    # Six steps of the search; the winner is not compressed again. It is written once more, as the
    # file that was asked for, and once to be measured on the half that chose nothing.
    assert counts["compressions"] == 6
    assert counts["files written"] <= 6 + 2


def test_another_budget_costs_no_decomposition(folder, counts):
    learned = compress_onnx.learn(folder / "model.onnx", folder / "data.npz")
    small_one = learned.compress(compress_onnx.request_of(params=0.3, rank_multiple=1))
    before = counts["decompositions of weights"]
    other = learned.compress(compress_onnx.request_of(params=0.6, rank_multiple=1))

    assert before == counts["decompositions of weights"] == WEIGHTS
    assert small_one.plan.parameters_after < other.plan.parameters_after


@pytest.mark.parametrize("name", METHODS)
def test_kept_factors_are_those_of_a_fresh_decomposition(folder, name):
    request = compress_onnx.request_of(method=name, params=0.4, rank_multiple=1)
    learned = compress_onnx.learn(folder / "model.onnx", folder / "data.npz")
    learned.compress(compress_onnx.request_of(method=name, params=0.8, rank_multiple=1))
    kept = learned.compress(request).factorizations()
    fresh = compress_onnx.learn(folder / "model.onnx", folder / "data.npz").compress(request)

    for key, found in fresh.factorizations().items():
        np.testing.assert_array_equal(kept[key].product(), found.product())


def test_what_moves_to_the_disk_comes_back_the_same(folder):
    request = compress_onnx.request_of(method="asvd", params=0.4, rank_multiple=1)
    learned = compress_onnx.learn(folder / "model.onnx", folder / "data.npz")
    expected = learned.compress(request).factorizations()
    tight = compress_onnx.learn(folder / "model.onnx", folder / "data.npz")
    key = tight._mixture(None), None
    tight._kept[key] = decompositions.Decompositions(tight.stats, memory_limit_bytes=1)
    found = tight.compress(request).factorizations()

    shelf = tight._kept[key]._shelf
    assert not shelf._in_memory
    assert len(list(Path(shelf._folder.name).iterdir())) == 2 * WEIGHTS
    for key, factorization in expected.items():
        np.testing.assert_array_equal(found[key].product(), factorization.product())


def test_nothing_mutates_the_original(folder):
    learned = compress_onnx.learn(folder / "model.onnx", folder / "data.npz")
    before = [node.name for node in learned.original.model.graph]
    for method in ("asvd", "auto"):
        for changes in ({"siblings": "auto"}, {}):
            made = learned.compress(
                compress_onnx.request_of(method=method, params=0.4, rank_multiple=1, **changes)
            )
            assert len(made.model.graph) > len(before)

    assert [node.name for node in learned.original.model.graph] == before
    assert model_file.content_digest(folder / "model.onnx", learned.original.model)
