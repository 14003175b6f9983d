"""Trials that were measured, kept in a file for the next call.

One trial a line (JSON), with the key of all that decides what it comes to: a call with other data,
another model or other settings finds none of its own, and adds its own. A call that was killed may
leave half a line at the end, which the next one does without.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from os import truncate
from pathlib import Path

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.pipeline.results import Trial

logger = logging.getLogger(__name__)


def is_trial_log(path: Path) -> bool:
    """Whether ``path`` is a file that :class:`TrialLog` wrote, as far as its first line tells."""
    try:
        with path.open(encoding="utf-8") as file:
            return set(json.loads(file.readline())) == {"key", "trial"}
    except (OSError, ValueError):
        return False


class TrialLog:
    """The trials of one key.

    Args:
        path: the file; None keeps nothing.
        key: of all that decides about trials, but their names.

    Raises:
        RequestError: the file is there and is no log.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self._path, self._key = path, key
        self._known: dict[str, Trial] = {}
        if path is None or not path.exists():
            return
        try:
            content = path.read_bytes()
            whole, newline, torn = content.rpartition(b"\n")
            for line in (whole if newline else torn).splitlines():
                entry = json.loads(line)
                trial = Trial.model_validate(entry["trial"])
                if entry["key"] == key:
                    self._known[trial.name] = trial
            if newline and torn:
                logger.warning("%s: the last trial was not written to its end", path)
                truncate(path, len(content) - len(torn))
        except (ValueError, KeyError, TypeError, OSError) as error:
            problem = str(error).splitlines()[0]
            raise RequestError(f"{path} is not a log of trials: {problem}") from error

    def get(self, name: str) -> Trial | None:
        """The trial of that name; None where it was not measured."""
        return self._known.get(name)

    def put(self, trial: Trial) -> None:
        """Add a trial to the file."""
        if self._path is None:
            return
        entry: Mapping[str, object] = {"key": self._key, "trial": trial.model_dump(mode="json")}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            logger.warning("%s: no trial is logged: %s", self._path, error.strerror)
