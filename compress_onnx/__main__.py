"""The command ``compress-onnx``, also ``python -m compress_onnx``.

ONNX Runtime is looked for before anything imports it: where it is missing, or two distributions of
it overwrite each other, an import would end in a traceback that does not say so.
"""

from __future__ import annotations

import sys

from compress_onnx.graph_passes.errors import CompressOnnxError
from compress_onnx.pipeline.runtime.distribution import require_one_runtime


def main() -> None:
    """Run the command line; without one whole ONNX Runtime, say so in one line and exit."""
    try:
        require_one_runtime()
    except CompressOnnxError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    from compress_onnx.pipeline.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
