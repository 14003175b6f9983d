"""What all tests share: one thread each, one profile of hypothesis, no width of a terminal.

Tests run in parallel processes. More threads in each only wait for one another (docs/threads.md),
so that the environment is set here before numpy is imported, and child processes inherit it. A test
that is about threads says so itself.
"""

from __future__ import annotations

import os
from pathlib import Path

for variable in ("COMPRESS_ONNX_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
# A console that finds a width here keeps it, whatever a test sets later.
os.environ.pop("COLUMNS", None)
# Studies are started as processes of their own (`python -m studies.peers`).
_DOCS = str(Path(__file__).parents[1] / "docs")
os.environ["PYTHONPATH"] = os.pathsep.join([_DOCS, *filter(None, [os.environ.get("PYTHONPATH")])])

from hypothesis import settings  # noqa: E402  # imports numpy

settings.register_profile("suite", deadline=None, max_examples=50)
settings.load_profile("suite")
