"""Virtual environments of rivals, in the cache folder: made once, for good.

The name of an environment holds a digest of what is in it, so that other versions are another
environment. One that could not be finished is made again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from compress_onnx.graph_passes.errors import CompressOnnxError
from compress_onnx.pipeline.files.cache import default_folder

_READY = "ready"


class RivalUnavailableError(CompressOnnxError):
    """A rival's environment cannot be made, or its script fails."""


def python_with(name: str, requirements: Sequence[str], base: Path | None = None) -> Path:
    """The interpreter of the environment ``name``, which has ``requirements``.

    Args:
        name: of the rival.
        requirements: with versions, as pip takes them.
        base: where environments are; the cache folder unless given.

    Raises:
        RivalUnavailableError: pip cannot install them; nothing is left then.
    """
    described = "\n".join([sys.version, *requirements])
    folder = (base or default_folder() / "rivals") / (
        f"{name}-{sha256(described.encode()).hexdigest()[:12]}"
    )
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (folder / _READY).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        try:
            _call([sys.executable, "-m", "venv", str(folder)])
            _call([str(python), "-m", "pip", "install", "--quiet", *requirements])
        except RivalUnavailableError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        (folder / _READY).write_text(f"{described}\n", encoding="utf-8")
    return python


def answer(python: Path, script: Path, request: Mapping[str, Any], folder: Path) -> Any:  # noqa: ANN401
    """What ``script`` answers to ``request``, both JSON.

    Raises:
        RivalUnavailableError: it fails.
    """
    asked, answered = folder / f"{script.stem}.request.json", folder / f"{script.stem}.answer.json"
    asked.write_text(json.dumps(request), encoding="utf-8")
    _call([str(python), str(script), str(asked), str(answered)])
    return json.loads(answered.read_text(encoding="utf-8"))


def _call(command: Sequence[str]) -> None:
    # What is importable here is none of the rival's.
    clean = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=clean)  # noqa: S603
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("ERROR")]  # pip's, before its advice
        why = (errors or said or [f"exit code {done.returncode}"])[-1].strip()
        raise RivalUnavailableError(f"{Path(command[0]).name} {' '.join(command[1:4])}: {why}")
