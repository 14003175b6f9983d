"""Memory stays bounded, however large the model is."""

from __future__ import annotations

import os
import re

import pytest
from cli_runner import python


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="the study needs wait4")
def test_a_large_model_is_never_in_memory_as_a_whole():
    study = python("-m", "studies.memory", "--blocks", 6, "--include", "*.o_proj")
    found = re.search(
        r"model ([\d.]+) GB, compressed ([\d.]+) GB, peak memory ([\d.]+) GB", study.stderr
    )
    assert found is not None, study.stderr
    model, compressed, peak = map(float, found.groups())
    assert model > compressed > 0.8
    assert peak < 0.7
