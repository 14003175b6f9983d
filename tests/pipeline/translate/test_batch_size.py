"""The batch size reaches everything that runs while a translation model is calibrated."""

from __future__ import annotations

import pytest

from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.translate import parts


class _ReachedError(Exception):
    pass


def test_calibration_goes_by_the_batch_size(monkeypatch, tmp_path):
    seen = {}

    def researcher(_subject, _samples, **options):
        seen.update(options)
        raise _ReachedError

    class Opened:
        table = None

    monkeypatch.setattr(parts, "open_subject", lambda _path: Opened())
    monkeypatch.setattr(parts, "_for_part", lambda request, *_tables: request)
    monkeypatch.setattr(parts, "Researcher", researcher)
    samples = parts.PartSamples("encoder", "decoder")
    with pytest.raises(_ReachedError):
        parts.compress_parts(tmp_path, tmp_path, CompressionSpec(), samples, batch_size=3)
    assert seen["batch_size"] == 3
