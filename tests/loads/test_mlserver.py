"""The bundle of MLServer, served for real on the loopback address: ``make serve-test``.

``COMPRESS_ONNX_SERVE_S`` is for how many seconds many clients ask at once (60 unless given).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

NAME = "minilm"
CLIENTS = 50
SECONDS = float(os.environ.get("COMPRESS_ONNX_SERVE_S", "60"))
TOLERANCE = 1e-5


def clients():
    """tritonclient's two protocols."""
    grpc = pytest.importorskip("tritonclient.grpc", reason="make serve-test")
    http = pytest.importorskip("tritonclient.http", reason="make serve-test")
    return {"http": http, "grpc": grpc}


class Server:
    """An MLServer of its own process, and what is asked of it."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder, self.log = folder, log
        self.ports = dict(zip(("HTTP", "GRPC", "METRICS"), free_ports(3), strict=True))
        self.start()

    def start(self) -> None:
        ports = {f"MLSERVER_{kind}_PORT": str(port) for kind, port in self.ports.items()}
        program = Path(sys.executable).parent / "mlserver"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [program, "start", str(self.folder)],
                env={**os.environ, **ports, "MLSERVER_HOST": "127.0.0.1"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + 120
        while not self.answers(f"/v2/models/{NAME}/ready"):
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.2)

    def stop(self, how: int = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait(30)

    def url(self, path: str = "", kind: str = "HTTP") -> str:
        return f"http://127.0.0.1:{self.ports[kind]}{path}"

    def answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(self.url(path), timeout=5) as response:
                return response.status == 200
        except OSError:
            return False

    def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        request = urllib.request.Request(
            self.url(path), body, {"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def client(self, protocol: str):
        address = f"127.0.0.1:{self.ports[protocol.upper()]}"
        return clients()[protocol].InferenceServerClient(address)

    def infer(self, protocol: str, feeds, version: str = "", client=None) -> np.ndarray:
        module = clients()[protocol]
        inputs = []
        for name, array in feeds.items():
            value = module.InferInput(name, array.shape, "INT64")
            # MLServer takes HTTP's numbers as JSON only.
            value.set_data_from_numpy(
                array, **({} if protocol == "grpc" else {"binary_data": False})
            )
            inputs.append(value)
        found = (client or self.client(protocol)).infer(NAME, inputs, version)
        return found.as_numpy("last_hidden_state")


def require_mlserver() -> None:
    """Not imported: it and tritonclient define the same messages, for one process too many."""
    if find_spec("mlserver") is None:
        pytest.skip("needs an environment of its own: make serve-test")


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


@contextmanager
def serving(folder: Path, log: Path) -> Iterator[Server]:
    server = Server(folder, log)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait(30)


@pytest.fixture(scope="module")
def server(bundles, tmp_path_factory) -> Iterator[Server]:
    require_mlserver()
    with serving(bundles / "mlserver", tmp_path_factory.mktemp("log") / "server.log") as found:
        yield found


def feeds(length: int = 12, batch: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    ids = rng.integers(1000, 20000, (batch, length))
    ones, zeros = np.ones_like(ids), np.zeros_like(ids)
    return {"input_ids": ids, "attention_mask": ones, "token_type_ids": zeros}


def expected(bundles: Path, version: int, given) -> np.ndarray:
    runtime = pytest.importorskip("onnxruntime")
    model = bundles / "mlserver" / NAME / f"v{version}" / "model.onnx"
    session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, given)[0]


def test_ready_and_metadata(server):
    for protocol in clients():
        client = server.client(protocol)
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(NAME)
    told = server.client("http").get_model_metadata(NAME)
    assert {value["name"]: value["shape"] for value in told["inputs"]} == {
        name: [-1, -1] for name in feeds()
    }
    assert told["outputs"][0]["shape"] == [-1, -1, 384]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("version", [1, 2])
def test_inference_is_that_of_onnx_runtime(server, bundles, protocol, version):
    given = feeds()
    found = server.infer(protocol, given, str(version))
    np.testing.assert_allclose(found, expected(bundles, version, given), atol=TOLERANCE)


def test_without_a_version_the_newest_answers(server, bundles):
    given = feeds(seed=3)
    np.testing.assert_allclose(
        server.infer("grpc", given), expected(bundles, 2, given), atol=TOLERANCE
    )


def request_of(given, **changes) -> dict:
    inputs = [
        {"name": n, "shape": list(a.shape), "datatype": "INT64", "data": a.ravel().tolist()}
        for n, a in given.items()
    ]
    inputs[0] |= changes
    return {"inputs": inputs}


GOOD = request_of(feeds())
BAD = {
    "an unknown input": request_of(feeds(), name="input_idz"),
    "an input twice": {"inputs": [*GOOD["inputs"], GOOD["inputs"][0]]},
    "an input less": {"inputs": GOOD["inputs"][:2]},
    "no inputs": {"inputs": []},
    "another type": request_of(feeds(), datatype="FP32"),
    "no type": request_of(feeds(), datatype="FP31"),
    "a rank less": request_of(feeds(), shape=[24]),
    "a negative size": request_of(feeds(), shape=[-2, -12]),
    "a shape that data do not fill": request_of(feeds(), shape=[2, 13]),
    "a shape beyond all memory": request_of(feeds(), shape=[2**40, 2**20]),
    "text for numbers": request_of(feeds(), data=["a"] * 24),
    "nested data of unequal lengths": request_of(feeds(), data=[[1, 2], [3]]),
    "numbers beyond 64 bits": request_of(feeds(), data=[2**70] * 24),
    "a token beyond the vocabulary": request_of(feeds(), data=[10**9] * 24),
    "sizes that do not fit each other": request_of(feeds(), shape=[1, 12], data=[5] * 12),
    "too many samples": request_of(feeds(batch=33)),
    "an unknown output": {**GOOD, "outputs": [{"name": "nothing"}]},
    "a path for a name": request_of(feeds(), name="../../etc/passwd"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_a_client_got_wrong_is_its_own_error(server, what):
    status, body = server.post(f"/v2/models/{NAME}/infer", json.dumps(BAD[what]).encode())
    assert 400 <= status < 500, (what, body[:300])
    assert server.post(f"/v2/models/{NAME}/infer", json.dumps(GOOD).encode())[0] == 200


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff\xfe\x00", b"null", b'{"inputs": 3}', b"[" * 100_000]
)
def test_malformed_bodies(server, body):
    assert 400 <= server.post(f"/v2/models/{NAME}/infer", body)[0] < 500
    assert server.answers(f"/v2/models/{NAME}/ready")


def test_an_oversized_body(server):
    """Four million numbers, for an input that takes 512 in a row: refused, and the server lives."""
    large = request_of({**feeds(), "input_ids": np.ones((1, 4_000_000), np.int64)})
    status, _ = server.post(f"/v2/models/{NAME}/infer", json.dumps(large).encode())
    assert 400 <= status < 500
    assert server.post(f"/v2/models/{NAME}/infer", json.dumps(GOOD).encode())[0] == 200


@pytest.mark.parametrize("path", ["/v2/models/none/infer", f"/v2/models/{NAME}/versions/9/infer"])
def test_what_is_not_served(server, path):
    assert server.post(path, json.dumps(GOOD).encode())[0] == 404


def ask_until(server: Server, stop: threading.Event, accepted: list[np.ndarray], given) -> int:
    """Ask again and again; returns how often. Anything but one of the accepted answers fails."""
    client, answered = server.client("grpc"), 0
    while not stop.is_set():
        found = server.infer("grpc", given, client=client)
        assert any(np.allclose(found, one, atol=TOLERANCE) for one in accepted)
        answered += 1
    return answered


def test_many_clients_at_once(server, bundles):
    given = feeds(length=16, batch=1)
    answer, stop = [expected(bundles, 2, given)], threading.Event()
    with ThreadPoolExecutor(CLIENTS) as pool:
        jobs = [pool.submit(ask_until, server, stop, answer, given) for _ in range(CLIENTS)]
        time.sleep(SECONDS)
        stop.set()
        counts = [job.result(60) for job in jobs]
    assert min(counts) > 0


def test_a_second_version_comes_under_load_without_a_lost_request(bundles, tmp_path):
    require_mlserver()
    folder = tmp_path / "models"
    shutil.copytree(bundles / "mlserver", folder)
    shutil.move(folder / NAME / "v2", tmp_path / "v2")
    given = feeds(length=16, batch=1)
    answers = [expected(bundles, version, given) for version in (1, 2)]
    stop = threading.Event()
    with serving(folder, tmp_path / "server.log") as server, ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(ask_until, server, stop, answers, given) for _ in range(8)]
        time.sleep(2)
        np.testing.assert_allclose(server.infer("grpc", given), answers[0], atol=TOLERANCE)
        shutil.move(tmp_path / "v2", folder / NAME / "v2")
        assert server.post(f"/v2/repository/models/{NAME}/load", b"")[0] == 200
        np.testing.assert_allclose(server.infer("grpc", given), answers[1], atol=TOLERANCE)
        time.sleep(2)
        stop.set()
        assert min(job.result(60) for job in jobs) > 0


def test_it_comes_back_after_it_was_killed(bundles, tmp_path):
    require_mlserver()
    given = feeds()
    with serving(bundles / "mlserver", tmp_path / "server.log") as server:
        server.stop(signal.SIGKILL)
        assert not server.answers(f"/v2/models/{NAME}/ready")
        server.start()
        np.testing.assert_allclose(
            server.infer("grpc", given), expected(bundles, 2, given), atol=TOLERANCE
        )
