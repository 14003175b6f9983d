"""On workers of which one is killed, everything comes out as on threads of one process."""

from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np
import pytest
import small_models as small
from cli_runner import Cli, error_line
from dask_cluster import Cluster

import compress_onnx
from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.evidence import calibrate, segments
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.recipe import read_recipe
from compress_onnx.pipeline.recipes.sweep import grid, sweep
from compress_onnx.pipeline.runtime.backend import Embedded
from compress_onnx.pipeline.runtime.progress import Silent

pytest.importorskip("distributed", reason="dask.distributed is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A model, data of several shards, and an empty cache; workers are of this folder, too."""
    monkeypatch.setenv("COMPRESS_ONNX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(calibrate, "SHARD_BATCHES", 2)
    small.save(small.encoder(), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", **small.sentences(60))
    return tmp_path


def killing(cluster, workers, step, seen):
    """Notes progress in ``seen``, and kills a worker in the middle of ``step``."""

    def told(name, done, total):
        if done == 0:
            seen[name].append([])
        seen[name][-1].append((done, total))
        if name == step and 0 < done < total and workers.threads == 2:
            cluster.kill()

    return compress_onnx.Calls(told)


def check_progress(cluster, step, seen):
    assert len([worker for worker in cluster.workers if worker.poll() is None]) == 1
    for steps in itertools.chain(*seen.values()):
        numbers = [done for done, _ in steps]
        assert numbers == sorted(numbers)
        assert numbers[-1] == steps[-1][1] or steps[-1][1] is None
    assert len(seen[step][0]) > 3


@pytest.mark.parametrize(
    ("method", "step", "large_from"),
    [
        ("auto", "calibrate", segments.LARGE_BYTES),
        ("auto", "calibrate", 0),
        ("auto", "decompose", segments.LARGE_BYTES),
        ("asvd", "factor", segments.LARGE_BYTES),
    ],
)
def test_a_model_is_the_same_to_the_bit_though_a_worker_is_killed(
    files, monkeypatch, method, step, large_from
):
    monkeypatch.setattr(segments, "LARGE_BYTES", large_from)

    def compressed(backend, progress):
        output = files / f"{backend.remote}.onnx"
        settings = RunSettings(batch_size=4, progress=progress, backend=backend)
        learned = compress_onnx.learn(files / "model.onnx", files / "data.npz", settings=settings)
        request = compress_onnx.request_of(method=method, params=0.4, rank_multiple=1)
        return learned.compress(request).write(output), output.read_bytes()

    seen = defaultdict(list)
    with Cluster(files) as cluster, cluster.connected() as workers:
        there = compressed(workers, killing(cluster, workers, step, seen))
        check_progress(cluster, step, seen)
    assert (
        there
        == compressed(Embedded(), Silent())
        == compressed(compress_onnx.open_backend("embedded:2"), Silent())
    )


def test_a_sweep_has_the_same_rows_though_a_worker_is_killed(files, capsys, monkeypatch):
    (files / "recipe.yaml").write_text(
        "name: small\n"
        "source: {model: model.onnx}\n"
        "calibration: {kind: npz, path: data.npz}\n"
        "validation: {kind: npz, path: data.npz}\n"
    )
    recipe = read_recipe(files / "recipe.yaml")
    untimed = recipe.model_copy(update={"benchmark": None})
    methods = [MethodSpec(name=name) for name in ("svd", "asvd", "auto")]
    variants = grid(CompressionSpec(rank_multiple=1), methods, {"params": [0.3, 0.6]}, [])
    seen = defaultdict(list)
    with Cluster(files) as cluster, cluster.connected() as workers:
        settings = RunSettings(progress=killing(cluster, workers, "sweep", seen), backend=workers)
        there = sweep(untimed, variants, base_dir=files, settings=settings)
        check_progress(cluster, "sweep", seen)
        timed = [CompressionSpec(latency=0.5)]
        with pytest.raises(RequestError, match="budget of latency"):
            sweep(untimed, timed, base_dir=files, settings=settings)
        command = ("sweep", files / "recipe.yaml", "--backend", f"dask:{cluster.address}")
        assert "--no-benchmark" in error_line(Cli(capsys, monkeypatch)(*command, code=2))
    assert there.rows == sweep(untimed, variants, base_dir=files).rows
