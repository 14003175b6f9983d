"""Plain text files, one sample a line."""

from __future__ import annotations

from pathlib import Path

from compress_onnx.graph_passes.errors import DataError


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file without surrounding white space; blank lines do not count.

    Raises:
        DataError: the file is missing, not UTF-8, or blank.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read the text file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: convert it first") from error
    # Not str.splitlines, which also cuts at form feeds and other rare separators.
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        raise DataError(f"{path} contains no text: one sample a line is expected")
    return lines
