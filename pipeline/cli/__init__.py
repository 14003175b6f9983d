"""The command line ``compress-onnx``: one module a command, nothing here that a library needs.

Exit codes:

    0    all gates passed
    1    a gate failed
    2    the request was wrong; one line says what, and what to do
    3    nothing could be compressed
    70   a defect of this program, with its traceback (``EX_SOFTWARE`` of sysexits.h)
    130  interrupted (128 + SIGINT, as shells count)
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn

__all__ = ["main"]

_DEFECT = getattr(os, "EX_SOFTWARE", 70)  # Windows has no such name
_INTERRUPTED = 130


def main() -> NoReturn:
    """Run the command line and leave with one of its exit codes."""
    try:
        # Here and not above: the imports take a second or two, in which Ctrl-C may come as well.
        from compress_onnx.pipeline.cli.dispatch import dispatch

        code = dispatch(sys.argv[1:] or ["--help"])
    except KeyboardInterrupt:
        code = _failed("interrupted", _INTERRUPTED)
    except Exception:  # whatever is not expected is a defect, and never a gate that failed
        traceback.print_exc()
        code = _failed("this is a defect of compress-onnx: report it, with the above", _DEFECT)
    sys.exit(code)


def _failed(message: str, code: int) -> int:
    sys.stderr.write(f"error: {message}\n")
    return code
