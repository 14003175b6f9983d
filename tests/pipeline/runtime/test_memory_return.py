"""Freed memory goes back to the system."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from compress_onnx.pipeline.runtime.memory import return_freed


def resident_bytes():
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident memory of Linux")
def test_what_was_freed_goes_back():
    # Pieces that the C library takes from its heap, the last of which stays.
    pieces = [np.ones(8000) for _ in range(2000)]
    kept = pieces[-1].copy()
    pieces.clear()
    before = resident_bytes()
    return_freed()
    assert resident_bytes() <= before
    assert kept.sum() == 8000
