"""Independent jobs in this process, and on workers of which one is killed."""

from __future__ import annotations

import sys
import threading
from functools import partial
from itertools import count, islice

import dask_cluster
import pytest
from cli_runner import Cli, error_line
from dask_cluster import Cluster, until
from tiny_models import saved, two_layers

from compress_onnx.graph_passes.errors import BackendError, MissingDependencyError, RequestError
from compress_onnx.pipeline.runtime import backend
from compress_onnx.pipeline.runtime.backend import Embedded, open_backend


def test_results_come_in_the_order_of_the_items():
    second = threading.Event()

    def work(item):
        assert item == 1 or second.wait(10)  # 0 is done after 1
        second.set()
        return -item

    assert list(open_backend("embedded:2").map(work, range(5))) == [0, -1, -2, -3, -4]


@pytest.mark.parametrize("jobs", [1, 2])
def test_items_are_made_when_they_are_due(jobs):
    made = []
    items = (made.append(n) or n for n in count())
    assert list(islice(Embedded(jobs).map(abs, items), 3)) == [0, 1, 2]
    assert len(made) < 3 + jobs


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_first_error_is_raised(jobs):
    with pytest.raises(ValueError, match="not 0"):
        list(Embedded(jobs).map(dask_cluster.refused, range(3)))


@pytest.mark.parametrize("name", ["", "dask", "dask:", "ray:head:1", "embedded:0", "embedded:"])
def test_an_unknown_backend_is_refused(name):
    with pytest.raises(RequestError, match="there is no backend"):
        open_backend(name)


def test_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingDependencyError, match=r"compress-onnx\[dask\]"):
        open_backend("dask:127.0.0.1:8786")


def test_workers_of_other_versions_are_refused():
    ours = backend._versions()
    backend._check_versions(ours, dict(ours), "w")
    with pytest.raises(BackendError, match=r"w has numpy 1\.0, and here is"):
        backend._check_versions(ours, ours | {"numpy": "1.0"}, "w")


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "127.0.0.1:9", "http://127.0.0.1:9", "?"])
def test_an_address_where_nobody_answers_is_one_line(address, tmp_path, capsys, monkeypatch):
    pytest.importorskip("distributed", reason="dask.distributed is not installed")
    monkeypatch.setattr(backend, "_CONNECT_S", 1)
    path = saved(tmp_path, two_layers((64, 16, 16))[0])
    arguments = ("compress", path, "-o", tmp_path / "small.onnx", "--backend", f"dask:{address}")
    line = error_line(Cli(capsys, monkeypatch)(*arguments, code=2))
    assert "nobody answers" in line
    assert address in line
    assert not (tmp_path / "small.onnx").exists()


@pytest.mark.slow
def test_a_job_whose_worker_is_killed_is_done_again(tmp_path):
    pytest.importorskip("distributed", reason="dask.distributed is not installed")
    marks = tmp_path / "marks"
    marks.mkdir()
    with Cluster(tmp_path) as cluster, cluster.connected() as workers:

        def kill():
            (mark,) = until(lambda: list(marks.glob("3.*")), "job 3")
            cluster.kill(int(mark.suffix[1:]))
            (marks / "go").touch()

        killer = threading.Thread(target=kill)
        killer.start()
        found = list(workers.map(partial(dask_cluster.squared_unless_killed, marks), range(12)))
        killer.join()

        assert found == [number**2 for number in range(12)]
        assert len(list(marks.glob("3.*"))) == 2
        assert workers.threads == 1
        with pytest.raises(ValueError, match="not 0"):
            list(workers.map(dask_cluster.refused, range(3)))


@pytest.mark.slow
def test_jobs_wait_for_a_new_worker_where_none_is_left(tmp_path, monkeypatch, caplog):
    pytest.importorskip("distributed", reason="dask.distributed is not installed")
    monkeypatch.setattr(backend, "_PATIENCE_S", 0.1)
    with Cluster(tmp_path, workers=1) as cluster, cluster.connected() as workers:

        def replace():
            until(lambda: list(tmp_path.glob("3.*")), "job 3")
            cluster.kill()
            until(lambda: "no workers are left" in caplog.text, "a warning")
            (tmp_path / "go").touch()
            cluster.start_worker()

        thread = threading.Thread(target=replace)
        thread.start()
        work = partial(dask_cluster.squared_unless_killed, tmp_path)
        assert list(workers.map(work, range(6))) == [number**2 for number in range(6)]
        thread.join()


@pytest.mark.slow
def test_a_job_that_kills_its_workers_is_one_line(tmp_path):
    pytest.importorskip("distributed", reason="dask.distributed is not installed")
    patience = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    with (
        Cluster(tmp_path, **patience) as cluster,
        cluster.connected() as workers,
        pytest.raises(BackendError, match="out of memory"),
    ):
        list(workers.map(dask_cluster.fatal, range(1)))


@pytest.mark.slow
def test_a_scheduler_without_workers_is_refused(tmp_path):
    pytest.importorskip("distributed", reason="dask.distributed is not installed")
    with (
        Cluster(tmp_path, workers=0) as cluster,
        pytest.raises(BackendError, match="there are no workers"),
    ):
        open_backend(f"dask:{cluster.address}")


@pytest.mark.slow
def test_a_scheduler_that_is_gone_is_one_line(tmp_path):
    pytest.importorskip("distributed", reason="dask.distributed is not installed")
    with Cluster(tmp_path) as cluster, cluster.connected() as workers:

        def kill():
            until(lambda: list(tmp_path.glob("3.*")), "job 3")
            cluster.kill_scheduler()

        killer = threading.Thread(target=kill)
        killer.start()
        work = partial(dask_cluster.squared_unless_killed, tmp_path)
        with pytest.raises(BackendError, match="is lost"):
            list(workers.map(work, range(12)))
        killer.join()
