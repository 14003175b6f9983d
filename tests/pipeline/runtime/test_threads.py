"""One number of threads for everything that computes, and one thread for each product."""

from __future__ import annotations

import threading

import pytest
from cli_runner import Cli, error_line
from threadpoolctl import threadpool_info
from tiny_models import saved, two_layers

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.compress import basis
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.runtime import threads
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session
from compress_onnx.pipeline.runtime.threads import limited, side_by_side, thread_count

SPINNING = "session.intra_op.allow_spinning"


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(threads, "available_cores", lambda: 8)
    monkeypatch.delenv("COMPRESS_ONNX_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "")


def blas_threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.mark.parametrize(
    ("ours", "openmp", "count"),
    [
        ("", "", 8),
        ("3", "", 3),
        ("", "2", 2),
        ("", "4,1", 4),
        ("3", "2", 3),
        ("99", "", 8),
        ("", "99", 8),
        ("", "0", 8),
        ("", "many", 8),
    ],
)
def test_the_environment_lowers_the_number_and_never_raises_it(monkeypatch, ours, openmp, count):
    monkeypatch.setenv("COMPRESS_ONNX_THREADS", ours)
    monkeypatch.setenv("OMP_NUM_THREADS", openmp)
    assert thread_count() == SessionSpec().thread_count == count
    assert SessionSpec(threads=5).thread_count == 5


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_what_is_no_number_of_threads_is_refused(monkeypatch, text):
    monkeypatch.setenv("COMPRESS_ONNX_THREADS", text)
    with pytest.raises(RequestError, match="COMPRESS_ONNX_THREADS"):
        thread_count()


def test_the_command_line_refuses_it_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COMPRESS_ONNX_THREADS", "two")
    path = saved(tmp_path, two_layers()[0])
    assert "'two'" in error_line(Cli(capsys, monkeypatch)("analyze", path, code=2))


def test_blas_gets_one_thread(monkeypatch):
    monkeypatch.setenv("COMPRESS_ONNX_THREADS", "3")
    before = blas_threads()
    with limited():
        assert blas_threads() == {1}
    assert blas_threads() == before


def test_the_api_computes_within_the_limits(tmp_path, monkeypatch):
    seen = set()
    plan = basis.make_plan

    def watched(*arguments, **options):
        seen.update(blas_threads())
        return plan(*arguments, **options)

    monkeypatch.setattr(basis, "make_plan", watched)
    path = saved(tmp_path, two_layers((64, 16, 16))[0])
    learn(path).compress(CompressionSpec(method=MethodSpec(name="svd"), params=0.5))
    assert seen == {1}


def test_side_by_side_is_on_as_many_threads_as_compute(monkeypatch):
    monkeypatch.setenv("COMPRESS_ONNX_THREADS", "2")
    monkeypatch.setattr(threads, "available_cores", lambda: 4)
    both, done = threading.Barrier(2, timeout=10), []

    def work(item):
        both.wait()  # passes only where two are at work
        done.append(item)

    side_by_side(work, range(6))
    assert sorted(done) == list(range(6))


def test_side_by_side_raises_what_went_wrong():
    def work(item):
        if item == 3:
            raise ValueError("item 3")

    with pytest.raises(ValueError, match="item 3"):
        side_by_side(work, range(6))


def test_the_number_reaches_libraries_that_are_loaded_later(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("COMPRESS_ONNX_THREADS", "3")
    with limited():
        assert threads.os.environ["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("spinning", [False, True])
def test_only_sessions_whose_time_is_measured_wait_busily(tmp_path, spinning):
    path = saved(tmp_path, two_layers()[0])
    session = open_session(path, spinning=spinning)
    assert session._sess_options.get_session_config_entry(SPINNING) == str(int(spinning))
