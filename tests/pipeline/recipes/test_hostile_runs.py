"""Runs that are killed, run out of disk, or run at once: the old result or the new one, whole."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import small_models as small

from compress_onnx.pipeline.cli import main
from compress_onnx.pipeline.files.bundle import verify_manifest
from compress_onnx.pipeline.report import read_report

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and limits")

RECIPE = {
    "name": "tiny",
    "source": {"model": "model.onnx"},
    "calibration": {"kind": "npz", "path": "data.npz"},
    "validation": {"kind": "npz", "path": "data.npz"},
    "benchmark": None,
}
KILLS = 20

LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.argv = ["compress-onnx", *sys.argv[2:]]
from compress_onnx.pipeline.cli import main
main()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Inputs in ``in``, an empty ``out``, and a cache of its own."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    small.save(small.perceptron(), tmp_path / "in" / "model.onnx")
    small.save_rows(tmp_path / "in" / "data.npz")
    (tmp_path / "in" / "recipe.yaml").write_text(json.dumps(RECIPE))
    monkeypatch.setenv("COMPRESS_ONNX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def spawn(*arguments, script=None):
    program = ["-c", script] if script else ["-m", "compress_onnx.pipeline.cli"]
    return subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# Forks of a process that has imported everything: most of a short run's time would be imports, and
# most kills would strike them.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["compress_onnx.pipeline.cli", "onnx_ad", "scipy.linalg"])


def fork(folder, *arguments):
    process = FORKS.Process(target=command_line, args=(folder, dict(os.environ), arguments))
    process.start()
    return process


def command_line(folder, environment, arguments):
    """What the process does: the command line, in ``folder``, with nothing shown."""
    os.chdir(folder)
    os.environ.update(environment)
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    sys.argv = ["compress-onnx", *arguments]
    main()


def finish(process):
    _, printed = process.communicate()
    assert "Traceback" not in printed
    return process.returncode, printed


RUN = ("run", "in/recipe.yaml", "-o", "out/bundle")


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True], ids=["nothing before", "an old bundle"])
def test_a_killed_run_leaves_the_old_bundle_or_the_new_one(folder, old):
    rng = random.Random(old)  # noqa: S311
    inputs, bundle = small.listing(folder / "in"), folder / "out" / "bundle"
    first = fork(folder, *RUN, "--params", "0.3")  # starts the process that forks, too
    first.join()
    assert first.exitcode == 0
    kept = folder / "kept"
    bundle.rename(kept)
    start = time.monotonic()  # of a run that finds its calibration in the cache, as all below do
    process = fork(folder, *RUN)
    process.join()
    assert process.exitcode == 0
    duration = time.monotonic() - start
    killed = 0
    for _ in range(KILLS // 2):
        shutil.rmtree(bundle, ignore_errors=True)
        if old:
            shutil.copytree(kept, bundle)
        process = fork(folder, *RUN)
        time.sleep(rng.uniform(0.05, 0.7) * duration)  # later runs may be faster than the first
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        assert small.listing(folder / "in") == inputs
        assert bundle.exists() or not old
        if bundle.exists() and small.listing(bundle) != small.listing(kept):
            assert is_new(bundle)
    assert killed >= KILLS // 4, "most runs had ended before they were to be killed"
    code, printed = finish(spawn(*RUN))
    assert code == 0, printed
    assert is_new(bundle)
    assert [path.name for path in (folder / "out").iterdir()] == ["bundle"]


def is_new(bundle):
    verify_manifest(bundle)
    return read_report(bundle).plan.budget.startswith("50%")


@pytest.mark.slow
def test_after_a_kill_the_cache_is_used(folder):
    assert finish(spawn(*RUN))[0] == 0
    written = {entry.name: entry.stat().st_mtime_ns for entry in (folder / "cache").iterdir()}
    assert len(written) == 2  # activations and gradients
    process = spawn(*RUN)
    time.sleep(1.5)
    process.kill()
    process.communicate()
    assert finish(spawn(*RUN))[0] == 0
    assert {e.name: e.stat().st_mtime_ns for e in (folder / "cache").iterdir()} == written


@pytest.mark.parametrize("limit", [1, 4_000, 20_000])
@pytest.mark.parametrize("external", [False, True], ids=["inline", "external"])
def test_a_disk_that_is_full_leaves_nothing(folder, limit, external):
    where = "--external-data" if external else "--inline"
    arguments = ("compress", "in/model.onnx", "-o", "out/small.onnx", "--rank", "20", where)
    before = small.listing(folder)
    code, printed = finish(spawn(limit, *arguments, script=LIMITED))
    assert code == 2
    line = printed.splitlines()[-1]
    assert line.startswith("error: cannot write out/small.onnx: ")
    assert "File too large" in line or "is the disk full?" in line
    assert small.listing(folder) == before


def test_a_run_on_a_full_disk_leaves_the_old_bundle(folder):
    assert finish(spawn(*RUN))[0] == 0
    before = small.listing(folder / "out")
    code, printed = finish(spawn(15_000, *RUN, "--no-cache", script=LIMITED))
    assert code == 2
    assert "File too large" in printed.splitlines()[-1]
    assert small.listing(folder / "out") == before


@pytest.mark.slow
def test_runs_at_once_do_not_disturb_each_other(folder):
    for _ in range(2):
        shutil.rmtree(folder / "cache", ignore_errors=True)
        processes = [spawn(*RUN, "--params", share) for share in (0.3, 0.5, 0.6)]
        results = [finish(process) for process in processes]
        assert [code for code, _ in results] == [0, 0, 0], results
        verify_manifest(folder / "out" / "bundle")
        report = read_report(folder / "out" / "bundle")
        size = (folder / "out" / "bundle" / "model.onnx").stat().st_size
        assert report.size.candidate_bytes == size
        assert [path.name for path in (folder / "out").iterdir()] == ["bundle"]
        entries = list((folder / "cache").iterdir())
        assert len(entries) == 2  # activations and gradients
        for entry in entries:
            with np.load(entry) as archive:
                assert archive.files
                assert all(np.isfinite(archive[name]).all() for name in archive.files)
