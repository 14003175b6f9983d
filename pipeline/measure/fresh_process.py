"""One model opened and run in a process of its own, where no other model counts or is warm.

The process starts ONNX Runtime with a trivial model first, so that only what the model itself takes
is measured. It imports little, because it starts many times.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import CompressOnnxError, ModelFileError
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run, trivial_model

_MAPS = Path("/proc/self/smaps_rollup")
_CHILD = "from compress_onnx.pipeline.measure.fresh_process import child; child()"


def save_feeds(feeds: Mapping[str, Array], path: Path) -> None:
    """Write one array for each input to ``path``, whatever the inputs are called."""
    np.savez(path, *feeds.values(), names=np.array(list(feeds)))


def _load_feeds(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as arrays:
        return {str(name): arrays[f"arr_{index}"] for index, name in enumerate(arrays["names"])}


def in_fresh_process(model: Path, feeds: Path, spec: SessionSpec) -> tuple[float, float]:
    """Open ``model`` in a process of its own, and run it once.

    Args:
        model: the path of the model.
        feeds: what :func:`save_feeds` wrote.
        spec: how it is run.

    Returns:
        Milliseconds to open a session, and the bytes by which the memory of the process grew with
        the session and the run; NaN where the system does not tell.

    Raises:
        ModelFileError: the model cannot be opened or run.
    """
    # -P: nothing is imported from the current folder, unless this process does so itself.
    arguments = [str(model), str(feeds), spec.model_dump_json()]
    command = [sys.executable, "-P", "-c", _CHILD, *arguments]
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(  # noqa: S603  # our own interpreter and code
        command, check=False, capture_output=True, text=True, env=os.environ | paths
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ModelFileError(
            f"cannot measure how {model} is loaded in a process of its own ({last}): leave it out "
            "with --loads 0"
        )
    load_ms, resident = json.loads(done.stdout)
    return load_ms, float("nan") if resident is None else resident


def child(arguments: Sequence[str] | None = None) -> None:
    """What the process does: open the model, run it, print ``[milliseconds, bytes or null]``."""
    model, feeds, settings = sys.argv[1:] if arguments is None else arguments
    spec = SessionSpec.model_validate_json(settings)
    inputs = _load_feeds(Path(feeds))
    try:
        started = open_session(trivial_model(), spec)
        before = _resident_bytes()
        start = time.perf_counter()
        session = open_session(Path(model), spec, spinning=True)
        load_ms = 1000 * (time.perf_counter() - start)
        run(session, inputs)
    except CompressOnnxError as error:
        sys.exit(str(error))
    after = _resident_bytes()
    del started
    grown = None if before is None or after is None else after - before
    sys.stdout.write(json.dumps([load_ms, grown]))


def _resident_bytes() -> int | None:
    try:
        found = re.search(r"^Rss:\s+(\d+) kB$", _MAPS.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1])
