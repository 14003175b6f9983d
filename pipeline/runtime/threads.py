"""How many threads compute: one number for ONNX Runtime, BLAS and what is loaded later.

    threads = min(available cores, COMPRESS_ONNX_THREADS, or OMP_NUM_THREADS where that is not set)

BLAS gets one of them; what is independent is computed side by side (:func:`side_by_side`). OpenBLAS
hands each small product to its workers and waits busily until they are done, and the workers wait
busily for the next one: a symmetric eigenproblem does that for every column. Where a worker has to
wait for a core, the problem takes tens of times as long, and takes the core from whoever had it:
another process, or ONNX Runtime (docs/threads.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import RequestError

VARIABLE = "COMPRESS_ONNX_THREADS"
OPENMP = "OMP_NUM_THREADS"


def available_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def thread_count() -> int:
    """The threads that a computation gets where nobody says how many.

    Raises:
        RequestError: ``COMPRESS_ONNX_THREADS`` is no number above zero.
    """
    return min(available_cores(), _wanted() or available_cores())


def _wanted() -> int | None:
    """What the environment says; None where it says nothing."""
    if text := os.environ.get(VARIABLE, "").strip():
        if not text.isdecimal() or int(text) < 1:
            raise RequestError(f"{VARIABLE} is {text!r}: set it to a number of threads, or not")
        return int(text)
    # One number for each level of nesting, by OpenMP's rules; the outermost is what counts here.
    outermost = os.environ.get(OPENMP, "").partition(",")[0].strip()
    return int(outermost) or None if outermost.isdecimal() else None


@contextmanager
def limited() -> Iterator[None]:
    """Compute within the limits; the command line enters this once, the API with each call.

    Raises:
        RequestError: ``COMPRESS_ONNX_THREADS`` is no number above zero.
    """
    threads = thread_count()
    # PyTorch reads this when it is imported, which is later.
    os.environ.setdefault(OPENMP, str(threads))
    with threadpool_limits(1, user_api="blas"):
        yield


Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Do ``work`` on each of ``items``, on as many threads as compute; raises their first error.

    For numpy's products, each with the one thread that BLAS gets: nobody waits busily.

    Raises:
        RequestError: ``COMPRESS_ONNX_THREADS`` is no number above zero.
    """
    with ThreadPoolExecutor(thread_count()) as pool:
        return list(pool.map(work, items))


def matmul(left: Array, right: Array) -> Array:
    """``[n, N]`` the product of ``left`` [n, K] and ``right`` [K, N], on as many threads.

    Raises:
        RequestError: ``COMPRESS_ONNX_THREADS`` is no number above zero.
    """
    made = np.empty((len(left), right.shape[1]), np.result_type(left, right))
    parts = np.array_split(np.arange(len(left)), thread_count())
    rows = [slice(part[0], part[-1] + 1) for part in parts if len(part)]
    side_by_side(lambda part: np.matmul(left[part], right, out=made[part]), rows)
    return made
