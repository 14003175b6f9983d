"""Exports of torch modules, and every way in which a factory can be wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from exporting import axes, export_to

from compress_onnx.graph_passes.errors import MissingDependencyError, ModelFileError, RequestError
from compress_onnx.pipeline.export import dynamo, export
from compress_onnx.pipeline.export.parity import compare_with_torch, run_onnx
from compress_onnx.pipeline.export.torch_model import TorchModel
from compress_onnx.pipeline.recipe import SourceSpec

FACTORIES = """
import torch
from torch import nn


class Perceptron(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.dropout = nn.Dropout(0.5)
        self.second = nn.Linear(8, 3)

    def forward(self, x):
        return self.second(self.dropout(torch.relu(self.first(x))))


class WithMask(nn.Module):
    def forward(self, x, mask):
        weights = mask.unsqueeze(-1)
        pooled = (x * weights).sum(1) / weights.sum(1)
        return {"pooled": pooled, "cache": None, "count": mask.sum(1)}


class Dishonest(nn.Module):
    def forward(self, x):
        return x * 1.01 if torch.compiler.is_exporting() else x * 1.0


class Clashing(nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return {"logits": x * self.logits}


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def perceptron():
    return Perceptron(), {"x": torch.randn(1, 6)}


def with_mask():
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    axes = {"x": {0: "batch_size", 1: "length"}, "mask": {0: "batch_size", 1: "length"}}
    return WithMask(), {"x": torch.randn(1, 4, 5), "mask": mask}, axes


def unequal_axes():
    axes = {"x": {1: "length"}, "mask": {1: "length"}}
    return WithMask(), {"x": torch.randn(1, 4, 5), "mask": torch.ones(1, 3)}, axes


def missing_axis():
    return Perceptron(), {"x": torch.randn(1, 6)}, {"y": {0: "batch_size"}}


def dishonest():
    return Dishonest(), {"x": torch.randn(2, 6)}


def clashing():
    return Clashing(), {"x": torch.randn(2, 6)}


def branching():
    return Branching(), {"x": torch.randn(2, 6)}


def wrong_names():
    return Perceptron(), {"y": torch.randn(2, 6)}


def only_a_module():
    return Perceptron()


def arrays():
    return Perceptron(), {"x": [1.0, 2.0]}


NOT_A_FUNCTION = 3
"""


@pytest.fixture
def factories(tmp_path: Path) -> str:
    """A module of factories beside the recipe; its name is new in every test."""
    pytest.importorskip("torch")
    name = f"factories_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    return name


def test_module_is_exported(tmp_path: Path, factories: str) -> None:
    exported = export_to(tmp_path, f"{factories}:perceptron")
    assert axes(exported.path) == {"x": ("batch_size", 6), "output": ("batch_size", 3)}
    assert (exported.report.exporter, exported.report.opset) == ("dynamo", 23)
    batches = [parity.input_shapes["x"][0] for parity in exported.report.parity]
    assert batches == [2, 3]
    names = {tensor.name for tensor in onnx.load(exported.path).graph.initializer}
    assert "first.bias" in names, "weights keep the names that they have in PyTorch"
    assert str(tmp_path).encode() not in exported.path.read_bytes()
    assert str(tmp_path) not in sys.path


@pytest.mark.slow
def test_module_with_named_axes_and_outputs(tmp_path: Path, factories: str) -> None:
    exported = export_to(tmp_path, f"{factories}:with_mask")
    assert axes(exported.path) == {
        "x": ("batch_size", "length", 5),
        "mask": ("batch_size", "length"),
        "pooled": ("batch_size", 5),
        "count": ("batch_size",),
    }
    assert [p.input_shapes["mask"] for p in exported.report.parity] == [(2, 4), (3, 5)]


@pytest.mark.slow
def test_seed_fixes_a_factory_that_draws_weights(tmp_path: Path, factories: str) -> None:
    spec = SourceSpec(model=f"{factories}:perceptron")
    weights = []
    for run, seed in enumerate((1, 1, 2)):
        folder = tmp_path / str(run)
        folder.mkdir()
        path = export(spec, folder, base_dir=tmp_path, seed=seed, allow_code=True).path
        weights.append(path.read_bytes())
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.slow
def test_opset_is_lowered_for_an_older_runtime(
    tmp_path: Path, factories: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def older_runtime(path: Path, probes: tuple[object, ...]) -> object:
        if onnx.load(path).opset_import[0].version > 20:
            raise ModelFileError("too new")
        return run_onnx(path, probes)

    monkeypatch.setattr(dynamo, "run_onnx", older_runtime)
    exported = export_to(tmp_path, f"{factories}:perceptron")
    assert exported.report.opset == onnx.load(exported.path).opset_import[0].version == 20
    assert exported.notes == ("exported at opset 20, because otherwise too new",)


@pytest.mark.slow
def test_large_weights_go_beside_the_model(
    tmp_path: Path, factories: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamo, "_INLINE_LIMIT_BYTES", 0)
    exported = export_to(tmp_path, f"{factories}:perceptron")
    assert sorted(path.name for path in exported.path.parent.iterdir()) == [
        "model.onnx",
        "model.onnx.data",
    ]
    reloaded = export(SourceSpec(model=str(exported.path)), tmp_path, base_dir=tmp_path)
    assert reloaded.report.opset == 23


def test_opset_that_dynamo_cannot_write(tmp_path: Path, factories: str) -> None:
    with pytest.raises(RequestError, match="opset 18 to 23, not 17"):
        export_to(tmp_path, f"{factories}:perceptron", opset=17)


def test_parity_failure_names_output_and_error(tmp_path: Path, factories: str) -> None:
    with pytest.raises(ModelFileError, match=r"'output' is off by 1\.00e-02"):
        export_to(tmp_path, f"{factories}:dishonest")
    assert not any((tmp_path / "out").iterdir())


def test_parity_covers_every_size(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = TorchModel(
        torch.nn.ReLU(), ("output",), {}, tuple({"input": torch.ones(n)} for n in (2, 3))
    )
    candidates = [{"output": np.ones(2, np.float32)}, {"output": np.ones(3, np.float32)}]
    assert len(compare_with_torch(model, candidates, 1e-3)) == 2
    candidates[1]["output"][2] = np.nan
    with pytest.raises(ModelFileError, match=r"'output' is off by inf .*\(3,\)"):
        compare_with_torch(model, candidates, 1e-3)


@pytest.mark.slow
def test_parity_tolerance_is_the_recipes(tmp_path: Path, factories: str) -> None:
    exported = export_to(tmp_path, f"{factories}:dishonest", parity_tolerance=0.02)
    for parity in exported.report.parity:
        assert parity.outputs[0].relative_l2 == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("factory", "error", "text"),
    [
        ("clashing", RequestError, "'logits' has the name of an input or a weight"),
        ("branching", ModelFileError, "PyTorch cannot export .*data-dependent"),
        ("wrong_names", RequestError, "do not fit forward"),
        ("only_a_module", RequestError, "must return .* not Perceptron"),
        ("arrays", RequestError, "must be tensors"),
        ("unequal_axes", RequestError, "'length' has 3 elements"),
        ("missing_axis", RequestError, "no axis 0 of an input 'y'"),
        ("absent", RequestError, "there is no function absent"),
        ("NOT_A_FUNCTION", RequestError, "there is no function"),
    ],
)
def test_wrong_factories(
    tmp_path: Path, factories: str, factory: str, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        export_to(tmp_path, f"{factories}:{factory}")
    assert "\n" not in str(caught.value)


def test_module_that_cannot_be_imported(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot import no_such_module"):
        export_to(tmp_path, "no_such_module:factory")


def test_module_needs_dynamo(tmp_path: Path, factories: str) -> None:
    with pytest.raises(RequestError, match="exporter dynamo"):
        export_to(tmp_path, f"{factories}:perceptron", exporter="optimum")


def test_missing_extra(tmp_path: Path, factories: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingDependencyError, match=r"onnxscript.*compress-onnx\[export\]"):
        export_to(tmp_path, f"{factories}:perceptron")
