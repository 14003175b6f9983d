"""What a server gains: ``python -m studies.serving BUNDLES PROGRAM PAGE``.

MLServer serves the original and the compressed model as two versions of one, on this machine. The
same clients ask one version, then the other, in turn: whatever else the machine does meets both.
Each client waits for its answer before it asks again.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.pipeline.files.atomic import atomic_file
from compress_onnx.pipeline.runtime.environment import environment

NAME = "minilm"
ORIGINAL, COMPRESSED = "1", "2"
CLIENTS = (1, 8, 32)
LENGTHS = (16, 128)
ROUNDS, SECONDS = 8, 4.0
_START_S = 120.0


class Load(NamedTuple):
    """Clients that ask at the same time, each with one sentence of so many tokens."""

    clients: int
    length: int


class Compared(NamedTuple):
    """Both versions under one load; of ``[rounds]`` latencies in ms, and answers a second."""

    load: Load
    latencies_ms: dict[str, list[Array]]
    rates: dict[str, list[float]]

    def ratio(self, rng: np.random.Generator) -> tuple[float, float, float]:
        """Compressed over original in answers a second, with a 95 % interval over rounds."""
        ours, theirs = (np.array(self.rates[version]) for version in (COMPRESSED, ORIGINAL))
        picks = rng.integers(len(ours), size=(2000, len(ours)))
        low, high = np.quantile(ours[picks].sum(1) / theirs[picks].sum(1), [0.025, 0.975])
        return float(ours.sum() / theirs.sum()), float(low), float(high)

    def percentile_ms(self, version: str, percent: float) -> float:
        """Of all rounds."""
        return float(np.percentile(np.concatenate(self.latencies_ms[version]), percent))


@contextmanager
def serving(program: Path, folder: Path, log: Path) -> Iterator[str]:
    """Start MLServer; yields the address of its gRPC port."""
    ports = _free_ports(3)
    names = ("MLSERVER_HTTP_PORT", "MLSERVER_GRPC_PORT", "MLSERVER_METRICS_PORT")
    variables = {name: str(port) for name, port in zip(names, ports, strict=True)}
    with log.open("w") as written:
        process = subprocess.Popen(  # noqa: S603  # the program that the command line names
            [program, "start", folder],
            env={**os.environ, **variables, "MLSERVER_HOST": "127.0.0.1"},
            stdout=written,
            stderr=subprocess.STDOUT,
        )
    address = f"127.0.0.1:{ports[1]}"
    try:
        _wait_until_ready(address, log)
        yield address
    finally:
        process.kill()
        process.wait()


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in held]
    for one in held:
        one.close()
    return ports


def _wait_until_ready(address: str, log: Path) -> None:
    from tritonclient.grpc import InferenceServerClient
    from tritonclient.utils import InferenceServerException

    client, deadline = InferenceServerClient(address), time.monotonic() + _START_S
    while time.monotonic() < deadline:
        try:
            if client.is_model_ready(NAME, ORIGINAL) and client.is_model_ready(NAME, COMPRESSED):
                return
        except InferenceServerException:
            pass
        time.sleep(0.2)
    raise TimeoutError(f"MLServer did not start:\n{log.read_text()[-3000:]}")


def compare(address: str, load: Load, rounds: int = ROUNDS, seconds: float = SECONDS) -> Compared:
    """Ask both versions in turn; the first round of each warms up and does not count."""
    found = Compared(load, {ORIGINAL: [], COMPRESSED: []}, {ORIGINAL: [], COMPRESSED: []})
    for turn in range(rounds + 1):
        order = (ORIGINAL, COMPRESSED) if turn % 2 else (COMPRESSED, ORIGINAL)
        for version in order:
            latencies, passed = _phase(address, version, load, seconds)
            if turn:
                found.latencies_ms[version].append(latencies)
                found.rates[version].append(len(latencies) / passed)
    return found


def _phase(address: str, version: str, load: Load, seconds: float) -> tuple[Array, float]:
    """Latencies in ms ``[answers]``, and how many seconds passed."""
    stop = threading.Event()
    begun = time.perf_counter()
    with ThreadPoolExecutor(load.clients) as pool:
        jobs = [pool.submit(_ask, address, version, load.length, stop) for _ in range(load.clients)]
        time.sleep(seconds)
        stop.set()
        latencies = [latency for job in jobs for latency in job.result()]
    return np.array(latencies), time.perf_counter() - begun


def _ask(address: str, version: str, length: int, stop: threading.Event) -> list[float]:
    from tritonclient import grpc

    client = grpc.InferenceServerClient(address)
    inputs, latencies = _inputs(grpc, length), []
    while not stop.is_set():
        begun = time.perf_counter()
        client.infer(NAME, inputs, version)
        latencies.append(1000 * (time.perf_counter() - begun))
    client.close()
    return latencies


def _inputs(grpc: Any, length: int) -> list[Any]:  # noqa: ANN401  # tritonclient has no types
    ids = np.random.default_rng(0).integers(1000, 20000, (1, length))
    arrays = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }
    inputs = []
    for name, array in arrays.items():
        value = grpc.InferInput(name, array.shape, "INT64")
        value.set_data_from_numpy(array)
        inputs.append(value)
    return inputs


def document(rows: Sequence[Compared], sizes: tuple[int, int], cosine: float) -> Iterator[str]:
    """The page."""
    machine = environment()
    original, compressed = (size / 1e6 for size in sizes)
    yield "# Served"
    yield ""
    yield "Written by `make serving`, with MLServer 1.7 and the runtime class of the bundle."
    yield ""
    yield (
        f"The original all-MiniLM-L6-v2 ({original:.0f} MB) and what `make compress-onnx` "
        f"makes of it ({compressed:.0f} MB, cosine {cosine:.4f}), as two versions on one server. "
        "Clients ask over gRPC, each with one sentence, and wait for the answer; server and "
        "clients share the machine."
    )
    yield ""
    yield (
        "| clients | tokens | original, answers/s | compressed, answers/s | ratio "
        "| p50 ms | p99 ms, original | p99 ms, compressed |"
    )
    yield "|---:|---:|---:|---:|:---|:---|---:|---:|"
    rng = np.random.default_rng(0)
    for row in rows:
        ratio, low, high = row.ratio(rng)
        rates = [float(np.mean(row.rates[version])) for version in (ORIGINAL, COMPRESSED)]
        medians = [row.percentile_ms(version, 50) for version in (ORIGINAL, COMPRESSED)]
        tails = [row.percentile_ms(version, 99) for version in (ORIGINAL, COMPRESSED)]
        yield (
            f"| {row.load.clients} | {row.load.length} | {rates[0]:.0f} | {rates[1]:.0f} "
            f"| {ratio:.2f}x [{low:.2f}, {high:.2f}] | {medians[0]:.1f} → {medians[1]:.1f} "
            f"| {tails[0]:.1f} | {tails[1]:.1f} |"
        )
    yield ""
    yield f"{machine.processor} ({', '.join(machine.instruction_sets)}), {machine.cores} cores."


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", type=Path)
    parser.add_argument("program", type=Path)
    parser.add_argument("page", type=Path)
    given = parser.parse_args()
    folder = given.bundles / "mlserver"
    report = json.loads((given.bundles / "minilm" / "report.json").read_text(encoding="utf-8"))
    with (
        TemporaryDirectory(prefix="compress-onnx-") as place,
        serving(given.program, folder, Path(place) / "server.log") as address,
    ):
        loads = [Load(clients, length) for length in LENGTHS for clients in CLIENTS]
        rows = [compare(address, load) for load in loads]
    models = [folder / NAME / f"v{version}" / "model.onnx" for version in (ORIGINAL, COMPRESSED)]
    sizes = (models[0].stat().st_size, models[1].stat().st_size)
    lines = document(rows, sizes, report["validation"]["metrics"]["cosine"])
    with atomic_file(given.page) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
