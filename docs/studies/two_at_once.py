"""Two compressions at once: ``python -m studies.two_at_once``.

A process does what calibrating and factoring a model of MiniLM's size does: run layers in ONNX
Runtime, gather second moments, solve symmetric eigenproblems, multiply. It is timed alone and
beside a second one like it, in turn, with the threads that the libraries take by themselves and
with those that the tool gives them. Prints one row for each, as docs/threads.md has them.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from scipy import linalg

from compress_onnx.graph_passes.factorization import MomentAccumulator
from compress_onnx.pipeline.runtime.session import open_session, run
from compress_onnx.pipeline.runtime.threads import available_cores, limited, side_by_side

HIDDEN, INTERMEDIATE, BLOCKS = 384, 1536, 6
BATCH, LENGTH, BATCHES = 32, 32, 4
HEADER = "threads", "alone s", "two at once s", "ratio", "CPU alone s", "CPU two s"


@dataclass(frozen=True)
class Cost:
    """What a process took, in seconds."""

    wall: float
    cpu: float


def layers() -> bytes:
    """A serialized chain of ``BLOCKS`` feed-forward blocks on ``x [batch, length, HIDDEN]``."""
    rng = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for index in range(2 * BLOCKS):
        shape = (HIDDEN, INTERMEDIATE) if index % 2 == 0 else (INTERMEDIATE, HIDDEN)
        weight = rng.standard_normal(shape).astype(np.float32) / np.sqrt(shape[0])
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"w{index}"))
        nodes.append(helper.make_node("MatMul", [value, f"w{index}"], [f"m{index}"]))
        nodes.append(helper.make_node("Tanh", [f"m{index}"], [f"h{index}"]))
        value = f"h{index}"
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "length", HIDDEN])]
        for name in ("x", value)
    ]
    graph = helper.make_graph(nodes, "layers", ends[0], ends[1], weights)
    opset = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())


def work(spinning: bool) -> None:
    """Calibrate and factor once."""
    rng = np.random.default_rng(0)
    session = open_session(layers(), spinning=spinning)
    moments = {side: MomentAccumulator(side) for side in (HIDDEN, INTERMEDIATE)}
    for _ in range(BATCHES):
        x = rng.standard_normal((BATCH, LENGTH, HIDDEN), dtype=np.float32)
        run(session, {"x": x})
        seen = [(moments[n], rng.standard_normal((BATCH * LENGTH, n), np.float32)) for n in moments]
        side_by_side(lambda pair: pair[0].update(pair[1]), seen)
    for side, count in ((HIDDEN, 5 * BLOCKS), (INTERMEDIATE, 1)):
        metric = moments[side].result().covariance
        weight = rng.standard_normal((side, HIDDEN))
        for _ in range(count):
            _, vectors = linalg.eigh(metric, driver="evd")
            turned = vectors.T @ weight
            linalg.eigh(turned.T @ turned, driver="evd")


def child(own: bool) -> None:
    """Do the work within the tool's limits, or without; print what it took."""
    with limited() if own else nullcontext():
        start = time.perf_counter()
        before = resource.getrusage(resource.RUSAGE_SELF)
        work(spinning=not own)
        wall, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    print(wall, cpu)


def at_once(count: int, own: bool) -> Cost:
    """The longest time and the CPU time of all of ``count`` processes that start together."""
    command = [sys.executable, "-m", "studies.two_at_once", "--child", "own" if own else "default"]
    # A number from outside would hide what the libraries do by themselves.
    hidden = {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "COMPRESS_ONNX_THREADS"}
    environment = {name: text for name, text in os.environ.items() if name not in hidden}
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)  # noqa: S603
        for _ in range(count)
    ]
    printed = [process.communicate()[0] for process in processes]
    for process in processes:
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
    costs = [Cost(*map(float, text.split())) for text in printed]
    return Cost(max(cost.wall for cost in costs), sum(cost.cpu for cost in costs))


def row(name: str, alone: list[Cost], both: list[Cost]) -> str:
    """A line of the table: medians, and the median of the rounds' ratios."""
    median = statistics.median
    ratio = median(two.wall / one.wall for one, two in zip(alone, both, strict=True))
    cells = (
        name,
        f"{median(cost.wall for cost in alone):.1f}",
        f"{median(cost.wall for cost in both):.1f}",
        f"{ratio:.2f}",
        f"{median(cost.cpu for cost in alone):.1f}",
        f"{median(cost.cpu for cost in both):.1f}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure in turn, so that other load strikes all alike."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", choices=("own", "default"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child == "own")
        return
    names = {False: "as the libraries take them", True: "as the tool gives them"}
    found: dict[tuple[bool, int], list[Cost]] = {}
    load = os.getloadavg()[0]
    for _ in range(arguments.rounds):
        for own in names:
            for count in (1, 2):
                found.setdefault((own, count), []).append(at_once(count, own))
    print(f"{available_cores()} cores, load {load:.1f} before, {arguments.rounds} rounds\n")
    print(f"| {' | '.join(HEADER)} |\n|:---|{'---:|' * (len(HEADER) - 1)}")
    for own, name in names.items():
        print(row(name, found[own, 1], found[own, 2]))


if __name__ == "__main__":
    main()
