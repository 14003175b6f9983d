"""The settings of a recipe reach everything that runs while a translation model is calibrated."""

from __future__ import annotations

from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.translate import parts


def test_calibration_goes_by_the_settings(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(parts, "learn", lambda _, data, settings: seen.append((data, settings)))
    monkeypatch.setattr(parts, "open_original", lambda _path: None)
    settings = RunSettings(batch_size=3, seed=7)

    parts.learn_parts(tmp_path, parts.PartSamples("encoder", "decoder"), settings)

    assert seen == [("encoder", settings), ("decoder", settings)]
