"""What every report says about itself before it says what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from compress_onnx.pipeline.runtime.environment import environment


@dataclass(frozen=True)
class Heading:
    """The name of a run or a sweep, and how it was asked for."""

    name: str
    command: str = ""

    def fields(self) -> dict[str, Any]:
        """The fields that all reports share: who made it, when, and with what."""
        return {
            "tool_version": version("compress-onnx"),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "name": self.name,
            "environment": environment(),
        }
