"""What a process takes more once it has run a model: ``python -m studies.performance.resident``.

Arguments: the model, an ``.npz`` of its inputs, the number of threads. Prints bytes: the peak of
the resident memory, less what was resident before the model was opened.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import numpy as np

from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run


def main() -> None:
    """Open, run twice, print."""
    model, data, threads = sys.argv[1:]
    with np.load(data) as arrays:
        feeds = dict(arrays)
    before = _peak_bytes()
    session = open_session(Path(model), SessionSpec(threads=int(threads)))
    for _ in range(2):
        run(session, feeds)
    sys.stdout.write(f"{_peak_bytes() - before}\n")


def _peak_bytes() -> int:
    """The peak so far; Linux counts in units of 1024 bytes, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
