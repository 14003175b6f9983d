"""Sums in front of norms keep their numbers, and ONNX Runtime no longer fuses them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from graphs import assert_parity, canonical, model, operators, weights

from compress_onnx.graph_passes.rewriting.unfused_norms import UnfuseNormsPass

NORM = "g (float[2,3,8] x, float[2,3,8] y) => (float[2,3,8] z) { s = Add(x, y) "
TEXTS = {
    "one node": f"{NORM} z = LayerNormalization(s, w, b) }}",
    "spelled out": f"""{NORM} m = ReduceMean<axes=[-1]>(s) d = Sub(s, m) p = Pow(d, two)
        v = ReduceMean<axes=[-1]>(p) e = Add(v, eps) q = Sqrt(e) n = Div(d, q) t = Mul(n, w)
        z = Add(t, b) }}""",
}


def build(name: str) -> onnx.ModelProto:
    numbers = weights(w=(8,), b=(8,))
    if name == "spelled out":
        numbers |= {"two": np.float32(2), "eps": np.float32(1e-5)}
    return model(TEXTS[name], {key: np.asarray(value) for key, value in numbers.items()})


def unfused(proto: onnx.ModelProto) -> onnx.ModelProto:
    work = canonical(proto)
    assert UnfuseNormsPass()(work).modified
    assert not UnfuseNormsPass()(work).modified
    return ir.to_proto(work)


def executed(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], folder: Path) -> set[str]:
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    session.run(None, feeds)
    events = json.loads(Path(session.end_profiling()).read_text())
    return {event["args"]["op_name"] for event in events if "op_name" in event.get("args", {})}


@pytest.mark.parametrize("name", TEXTS)
def test_the_numbers_stay_and_the_fusion_goes(name: str, tmp_path: Path) -> None:
    before = build(name)
    feeds = weights(1, x=(2, 3, 8), y=(2, 3, 8))
    after = unfused(before)
    assert operators(after) == ["Sum", *operators(before)[1:]]
    assert_parity(before, after, feeds, tolerance=1e-6)
    assert "SkipLayerNormalization" in executed(before, feeds, tmp_path)
    assert "SkipLayerNormalization" not in executed(after, feeds, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[2,3,8] x) => (float[2,3,8] z) { s = Add(x, b) z = LayerNormalization(s, w, b) }",
        "g (float[2,3,8] x, float[2,3,8] y) => (float[2,3,8] z) { z = Add(x, y) }",
        "g (float[2,3,8] x, float[2,3,8] y) => (float[2,3,8] z) { s = Add(x, y) z = Softmax(s) }",
    ],
)
def test_other_sums_stay(text: str) -> None:
    numbers = {key: value for key, value in weights(w=(8,), b=(8,)).items() if f"{key})" in text}
    work = canonical(model(text, numbers | ({"w": np.ones(8, np.float32)} if "w," in text else {})))
    assert not UnfuseNormsPass()(work).modified
