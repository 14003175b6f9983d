"""Durations as people write them."""

from __future__ import annotations

import pytest

from compress_onnx.pipeline.recipe import RecoverySpec
from compress_onnx.pipeline.runtime.duration import parse_duration


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10min", 600), ("1.5 h", 5400)])
def test_durations(text, seconds):
    assert parse_duration(text) == seconds
    assert RecoverySpec(budget=text).budget == seconds


@pytest.mark.parametrize("text", ["", "10", "0s", "-1min", "1d", "min"])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="write 90s, 10min or 1h"):
        parse_duration(text)
