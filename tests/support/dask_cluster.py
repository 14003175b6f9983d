"""A dask scheduler and workers as processes on the loopback address, and jobs that they run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compress_onnx.pipeline.runtime.backend import Dask

_ROOT, _SUPPORT = Path(__file__).parents[2], Path(__file__).parent
PATIENCE_S = 120
VARIABLE = "COMPRESS_ONNX_CLUSTER"
"""Tests with a cluster run where it is set, by themselves: ``make test-cluster``."""


def until(condition, what):
    """Wait until ``condition()`` is true, and return what it is."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.05)
    return found


class Cluster:
    """A scheduler, and ``workers`` processes that take one job at a time."""

    def __init__(self, folder, workers=2, **environment):
        if VARIABLE not in os.environ:
            pytest.skip("needs a cluster of its own: make test-cluster")
        paths = [str(_ROOT), str(_SUPPORT), os.environ.get("PYTHONPATH", "")]
        self._env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | environment
        self._folder = folder
        self._file = folder / "scheduler.json"
        self._scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0")
        self.address = json.loads(until(self._read, "a scheduler"))["address"]
        self.workers = []
        for _ in range(workers):
            self.start_worker()

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        for process in (*self.workers, self._scheduler):
            process.kill()
            process.wait()

    def start_worker(self):
        """Start one more."""
        options = ("--nthreads", "1", "--no-nanny", "--local-directory", self._folder)
        self.workers.append(self._start("worker", *options))

    def connected(self):
        """The backend, once all workers are there."""
        until(lambda: self._told() or None, "workers")
        backend = Dask(self.address)
        until(lambda: backend.threads == len(self.workers), "all workers")
        return backend

    def kill(self, pid=None):
        """End a worker as the kernel does where memory runs out."""
        pid = pid or self.workers[0].pid
        os.kill(pid, signal.SIGKILL)
        next(worker for worker in self.workers if worker.pid == pid).wait()

    def kill_scheduler(self):
        """End it, so that nobody knows the jobs any more."""
        self._scheduler.kill()
        self._scheduler.wait()

    def _told(self):
        return "Registered to" in "".join(log.read_text() for log in self._folder.glob("*.log"))

    def _read(self):
        return self._file.read_text() if self._file.exists() else ""

    def _start(self, role, *arguments):
        count = len(list(self._folder.glob("*.log")))
        command = [sys.executable, "-m", "dask", role, *arguments, "--no-dashboard"]
        with (self._folder / f"{count}.{role}.log").open("w") as log:
            return subprocess.Popen(
                [*map(str, command), "--scheduler-file", str(self._file)],
                env=self._env,
                stdout=log,
                stderr=subprocess.STDOUT,
            )


def squared_unless_killed(folder, number):
    """``number²``; of 3 only once there is a file ``go``. Leaves a file of its process behind."""
    (Path(folder) / f"{number}.{os.getpid()}").touch()
    if number == 3:
        until((Path(folder) / "go").exists, "go")
    return number**2


def fatal(_number):
    """End the process that does this."""
    os._exit(1)


def refused(number):
    """Raise."""
    raise ValueError(f"not {number}")
