"""Steps inside steps share one display; trials are shown as they are measured."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from compress_onnx.pipeline.cli import console
from compress_onnx.pipeline.cli.console import ProgressBars, TrialTable
from compress_onnx.pipeline.results import Drop, Trial


@pytest.fixture(params=[True, False], ids=["terminal", "log"])
def shown(request, monkeypatch):
    text = io.StringIO()
    screen = Console(file=text, width=80, force_terminal=request.param)
    monkeypatch.setattr(console, "notes", screen)
    return text


def test_a_step_inside_another_shares_its_display_and_leaves_nothing(shown):
    bars = ProgressBars()
    with bars.step("outer") as outer, bars.step("inner", 3) as inner:
        outer(1)
        inner(2)
    last_drawn = shown.getvalue().rpartition("outer")[2]
    assert "0:00:0" in last_drawn
    assert "inner" not in last_drawn


def test_after_an_error_the_next_step_has_a_display_of_its_own(shown):
    bars = ProgressBars()
    with pytest.raises(ValueError, match="x"), bars.step("outer"), bars.step("inner", 3):
        raise ValueError("x")
    with bars.step("next", 2) as update:
        update(1)
    assert "next" in shown.getvalue()
    assert "2/2" in shown.getvalue()


def test_a_running_step_tells_the_time_left_and_a_finished_one_does_not(monkeypatch):
    text, now = io.StringIO(), 0.0
    screen = Console(file=text, width=120, force_terminal=True, get_time=lambda: now)
    monkeypatch.setattr(console, "notes", screen)
    with ProgressBars().step("long", 100) as update:
        for done in (10, 20, 30):
            now += 10.0
            update(done)
        screen._live_stack[-1].refresh()
        running = text.getvalue()
        assert "0:01:10 left" in running.replace("\x1b[36m", "").replace("\x1b[0m", "")
    finished = text.getvalue()[len(running) :].rpartition("long")[2]
    assert "left" not in finished
    assert "100/100" in finished.replace("\x1b[32m", "").replace("\x1b[0m", "")


def test_a_step_of_unknown_length_tells_no_time_left(shown):
    with ProgressBars().step("export"):
        pass
    assert "left" not in shown.getvalue()


def test_trials_are_rows_of_a_table_beside_bars(shown):
    table = TrialTable()
    with ProgressBars().step("optimize"):
        drop = Drop(quantity="relative_l2", value=0.012345)
        table(Trial(name="half", drop=drop, within=True, size_bytes=12_300_000))
        table(Trial(name="broken", problem="no layer [x] can"))
    text = shown.getvalue()
    assert text.count("within") == 1
    row = next(line for line in text.splitlines() if "half" in line)
    assert {"0.01235", "12.3", "MB", "yes", "half"} <= set(row.split())
    assert "broken: no layer [x] can" in text
