"""Keep the exporters' chatter off the terminal: it goes to this project's log instead."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

_LOGGER = logging.getLogger(__name__)
_TALKATIVE = ("torch.onnx", "onnxscript", "onnx_ir", "transformers", "optimum")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Log warnings and printed text at debug level; errors still pass."""
    levels = {name: logging.getLogger(name).level for name in _TALKATIVE}
    printed = io.StringIO()
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(printed):
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
    for text in [str(warning.message) for warning in caught] + printed.getvalue().splitlines():
        _LOGGER.debug("%s", text)
