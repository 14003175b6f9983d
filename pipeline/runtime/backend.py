"""Where independent jobs run: in this process, or on dask workers of many machines.

    backend.map(work, items)  ->  the results of ``work``, in the order of ``items``

Rules:

1. A job depends on its item alone, and BLAS computes it with one thread, wherever that is: results
   are the same to the bit on processors of one kind. Workers of other versions are refused.
2. An item is made when it is due: as many are under way as keep all workers busy, not more.
3. A job whose worker dies is done again by another. Dask's scheduler has its item until this
   process has its result.
4. Dask's transport is pickle, both ways, between machines that trust each other. What comes out of
   files is arrays and serialized models by then: nothing here or there unpickles a file.
"""

from __future__ import annotations

import functools
import logging
import platform
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from importlib import metadata
from typing import TYPE_CHECKING, Protocol, TypeVar

import onnxruntime
from threadpoolctl import threadpool_limits

from compress_onnx.graph_passes.errors import BackendError, MissingDependencyError, RequestError
from compress_onnx.pipeline.runtime.threads import thread_count

if TYPE_CHECKING:
    from distributed import Client

EMBEDDED, DASK = "embedded", "dask"

_CONNECT_S = 10
_PATIENCE_S = 5.0
"""After so long without a result, somebody looks whether there are workers at all."""

_MOST_JOBS = 4
"""At once in this process, unless somebody says how many."""

_PACKAGES = ("compress-onnx", "numpy", "scipy")
"""What decides about bits, beside Python and ONNX Runtime."""

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


class Backend(Protocol):
    """Carries independent jobs out.

    Attributes:
        remote: whether workers share no memory with this process; they see its files all the same.
    """

    remote: bool

    def map(self, work: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
        """The results of ``work`` on ``items``, in their order; raises the first error.

        Raises:
            BackendError: the workers are gone, or the job kills each of them.
        """


class Embedded:
    """Threads of this process.

    Args:
        jobs: how many at once. By itself as many as threads compute, four at most: each has a
            weight and its metric in memory.
    """

    remote = False

    def __init__(self, jobs: int | None = None) -> None:
        self.jobs = jobs

    def map(self, work: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
        """See :class:`Backend`."""
        jobs = self.jobs or min(thread_count(), _MOST_JOBS)
        if jobs == 1:
            yield from map(work, items)
            return
        with ThreadPoolExecutor(jobs) as pool:

            def submit(item: Item) -> Future[Result]:
                return pool.submit(work, item)

            yield from _in_order(submit, items, lambda: jobs, Future.result)


class Dask:
    """Workers of a dask cluster; the connection is there until :meth:`close`.

    Args:
        address: of its scheduler.

    Raises:
        MissingDependencyError: dask is not installed.
        BackendError: nobody answers there, there are no workers, or theirs are other versions.
    """

    remote = True

    def __init__(self, address: str) -> None:
        self.address = address
        self._client = _connected(address)
        try:
            self._check_workers()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Dask:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cluster."""
        self._client.close()

    @property
    def threads(self) -> int:
        """How many jobs the cluster carries out at once, now.

        Raises:
            BackendError: the scheduler is gone.
        """
        try:
            return sum(self._client.nthreads().values())
        except OSError as gone:
            raise self._lost() from gone

    def map(self, work: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
        """See :class:`Backend`.

        Raises:
            BackendError: the workers are gone, or the job kills each of them.
        """
        import dask

        job = functools.partial(_job, work, _versions())
        with self._client.get_executor(pure=False) as pool:

            def submit(item: Item) -> Future[Result]:
                # A weight goes along with its job: placed on one worker, it would die with that.
                with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"}):
                    future: Future[Result] = pool.submit(job, item)
                return future

            yield from _in_order(submit, items, lambda: 2 * self.threads, self._result)

    def _result(self, future: Future[Result]) -> Result:
        from distributed import KilledWorker
        from distributed.comm import CommClosedError

        warned = False
        while not wait([future], _PATIENCE_S).done:
            if not warned and not self.threads:
                logger.warning("no workers are left at %s: jobs wait for others", self.address)
                warned = True
        try:
            return future.result()
        except (CancelledError, CommClosedError) as gone:
            raise self._lost() from gone
        except KilledWorker as killed:
            raise BackendError(
                "one job ended several workers in turn: look whether they run out of memory"
            ) from killed

    def _lost(self) -> BackendError:
        return BackendError(
            f"the connection to the dask scheduler at {self.address} is lost: start it again, and "
            "then this"
        )

    def _check_workers(self) -> None:
        try:
            found = self._client.run(_versions)
        except Exception as error:  # whatever goes wrong on a machine that is not set up
            raise BackendError(
                f"a worker at {self.address} cannot run compress-onnx "
                f"({type(error).__name__}: {' '.join(str(error).split())}): install it there"
            ) from error
        if not found:
            raise BackendError(
                f"there are no workers at {self.address}: start them with `dask worker "
                f"{self.address} --nthreads 1`"
            )
        for worker, theirs in found.items():
            _check_versions(_versions(), theirs, worker)


def open_backend(name: str = EMBEDDED) -> Backend:
    """``embedded``, ``embedded:JOBS``, or ``dask:ADDRESS``.

    Raises:
        RequestError: the name is none of them.
        MissingDependencyError: dask is not installed.
        BackendError: nobody answers at the address, or not as expected.
    """
    kind, _, rest = name.partition(":")
    if name == EMBEDDED:
        return Embedded()
    if kind == EMBEDDED and rest.isdecimal() and int(rest) > 0:
        return Embedded(int(rest))
    if kind == DASK and rest:
        return Dask(rest)
    raise RequestError(
        f"there is no backend {name!r}: use {EMBEDDED}, {EMBEDDED}:JOBS, or {DASK}:ADDRESS, such "
        f"as {DASK}:tcp://10.0.0.1:8786"
    )


def _in_order(
    submit: Callable[[Item], Future[Result]],
    items: Iterable[Item],
    ahead: Callable[[], int],
    result: Callable[[Future[Result]], Result],
) -> Iterator[Result]:
    """The results in the order of ``items``, with at most ``ahead()`` jobs under way."""
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(submit(item))
            while len(waiting) >= max(1, ahead()):
                yield result(waiting.popleft())
        while waiting:
            yield result(waiting.popleft())
    finally:
        for future in waiting:
            future.cancel()


def _job(work: Callable[[Item], Result], versions: dict[str, str], item: Item) -> Result:
    """Do ``work`` on a worker, which has one thread of BLAS from then on."""
    _check_versions(versions, _versions(), platform.node())
    threadpool_limits(1, user_api="blas")
    return work(item)


@functools.cache
def _versions() -> dict[str, str]:
    """What decides about bits, in this process."""
    python = ".".join(platform.python_version_tuple()[:2])
    found = {"Python": python, "ONNX Runtime": onnxruntime.__version__}
    return found | {name: metadata.version(name) for name in _PACKAGES}


def _check_versions(ours: dict[str, str], theirs: dict[str, str], worker: str) -> None:
    for name, version in ours.items():
        if theirs.get(name) != version:
            raise BackendError(
                f"the worker {worker} has {name} {theirs.get(name)}, and here is {version}: "
                "results would differ, so install the same there"
            )


def _connected(address: str) -> Client:
    try:
        from distributed import Client
    except ImportError as missing:
        raise MissingDependencyError(
            "the backend dask needs dask.distributed: pip install 'compress-onnx[dask]'"
        ) from missing
    # What it logs, with tracebacks, is raised here, in one line.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    try:
        return Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise BackendError(
            f"nobody answers as a dask scheduler at {address}: check the address, or start "
            "`dask scheduler` there"
        ) from error
