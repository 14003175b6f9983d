"""Damaged files of strangers, for a few seconds; ``make fuzz`` goes on for ten minutes."""

from __future__ import annotations

from fuzz import READERS, fuzz


def test_readers_refuse_or_read(tmp_path):
    tried = fuzz(6, seed=1, keep=tmp_path)
    assert tried.keys() == READERS.keys()
    assert min(tried.values()) > 10
