"""The study of scale measures what a step takes, and writes no more than its own tables."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from studies import scale


def test_the_rest_of_the_page_stays(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{scale.BEGIN}\nold\n{scale.END}\nafter\n")
    monkeypatch.setattr(scale, "PAGE", page)
    scale.write_between_marks(["new"])
    first = page.read_text()
    assert first == f"before\n{scale.BEGIN}\n\nnew\n{scale.END}\nafter\n"
    scale.write_between_marks(["new"])
    assert page.read_text() == first


def test_the_page_has_a_place_for_the_tables():
    text = scale.PAGE.read_text()
    assert text.index(scale.BEGIN) < text.index(scale.END)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own peak is Linux's")
def test_a_peak_belongs_to_its_step():
    np.ones(100_000_000).sum()  # 800 MB before the watch
    watch = scale.Watch()
    with watch.step("large"):
        np.ones(50_000_000).sum()  # 400 MB, let go at once
    with watch.step("small"):
        pass
    large, small, rest = watch.result()
    assert (large.name, small.name, rest.name) == ("large", "small", scale.ELSE)
    assert large.peak_bytes - small.peak_bytes > 300_000_000
    assert rest.peak_bytes < large.peak_bytes


@pytest.mark.parametrize("accuracy", [True, False], ids=["encoder", "random weights"])
def test_only_what_has_an_accuracy_is_measured_again(accuracy, tmp_path, monkeypatch):
    calls = []

    def run(*_, accuracy):
        calls.append(accuracy)
        more = (3.0, 0.9) if accuracy else (None, None)
        return scale.Run([scale.Step("calibrate", 7.0, 2_000_000_000)], more[0], 10, more[1])

    monkeypatch.setattr(scale, "in_child", run)
    monkeypatch.setattr(scale, "file_bytes", lambda _: 1_000_000_000)
    np.savez(tmp_path / "data.npz", input_ids=np.zeros((2, 3)))
    made = scale.table("x", tmp_path / "model.onnx", tmp_path / "data.npz", accuracy=accuracy)
    text = "\n".join(made)
    assert "| calibrate | 7 | 2.00 | 2.00 |" in text
    assert "| **all** | 7 | 2.00 | 2.00 |" in text
    assert len(calls) == (2 if accuracy else 1)
    for told in ("another share", "from the cache", "Cosine"):
        assert (told in text) == accuracy
