"""A log of trials outlives a call that was killed, and is never taken for another file."""

from __future__ import annotations

import pytest

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.pipeline.compress.trial_log import TrialLog, is_trial_log
from compress_onnx.pipeline.results import Trial


@pytest.fixture
def path(tmp_path):
    return tmp_path / "trials.jsonl"


def test_trials_come_back_under_their_key(path):
    TrialLog(path, "k").put(Trial(name="a", share=0.5))
    assert TrialLog(path, "k").get("a") == Trial(name="a", share=0.5)
    assert TrialLog(path, "k").get("b") is None
    assert TrialLog(path, "other").get("a") is None
    assert is_trial_log(path)


def test_half_a_line_at_the_end_is_done_without(path, caplog):
    log = TrialLog(path, "k")
    log.put(Trial(name="a"))
    log.put(Trial(name="b"))
    path.write_bytes(path.read_bytes()[:-7])
    again = TrialLog(path, "k")
    assert again.get("a") is not None
    assert again.get("b") is None
    assert "not written to its end" in caplog.text
    again.put(Trial(name="c"))
    third = TrialLog(path, "k")
    assert third.get("a") is not None
    assert third.get("c") is not None


@pytest.mark.parametrize("text", ["buy milk", "buy milk\nand bread\n", '{"key": "k"}\n', "[1]\n"])
def test_what_is_no_log_is_refused_and_left_alone(path, text):
    path.write_text(text)
    assert not is_trial_log(path)
    with pytest.raises(RequestError, match="is not a log of trials"):
        TrialLog(path, "k")
    assert path.read_text() == text
