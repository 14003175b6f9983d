"""Synthetic inputs: right shapes for every graph, harmless values, real rows where there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from compress_onnx.graph_passes.errors import DataError, ModelFileError
from compress_onnx.pipeline.runtime.inputs import (
    ModelInput,
    load_structure,
    model_inputs,
    synthetic_feeds,
)
from compress_onnx.pipeline.runtime.samples import Samples

INT64 = np.dtype(np.int64)
FLOAT = np.dtype(np.float32)


def feeds(*inputs: ModelInput, batch: int = 2, length: int = 5, seed: int = 0, samples=None):
    return synthetic_feeds(inputs, batch=batch, length=length, seed=seed, samples=samples)


def model(*values: onnx.ValueInfoProto, defaults: tuple[str, ...] = ()) -> onnx.ModelProto:
    tensors = [helper.make_tensor(name, TensorProto.FLOAT, [1], [0.0]) for name in defaults]
    return helper.make_model(helper.make_graph([], "g", list(values), [], tensors))


@given(batch=st.integers(1, 4), length=st.integers(1, 9), fixed=st.integers(1, 4))
def test_shapes(batch: int, length: int, fixed: int) -> None:
    made = feeds(
        ModelInput("ids", INT64, ("b", "s")),
        ModelInput("past", FLOAT, ("b", fixed, "p", 3)),
        ModelInput("attention_mask", INT64, ("b", "p + s")),
        ModelInput("other", FLOAT, ("n", "b")),
        ModelInput("anonymous", FLOAT, (None, None)),
        ModelInput("one_more", FLOAT, (fixed, "p + 1")),
        batch=batch,
        length=length,
    )
    assert {name: a.shape for name, a in made.items()} == {
        "ids": (batch, length),
        "past": (batch, fixed, length, 3),
        "attention_mask": (batch, 2 * length),
        "other": (batch, batch),
        "anonymous": (batch, length),
        "one_more": (fixed, length + 1),
    }


def test_values() -> None:
    shape = ("b", "s")
    made = feeds(
        ModelInput("input_ids", INT64, shape),
        ModelInput("attention_mask", FLOAT, shape),
        ModelInput("token_type_ids", INT64, shape),
        ModelInput("position_ids", INT64, shape),
        ModelInput("use_cache", np.dtype(bool), ()),
        ModelInput("pixels", np.dtype(np.float16), shape),
    )
    assert (made["input_ids"] >= 0).all()
    assert made["input_ids"].max() < 10
    assert (made["attention_mask"] == 1).all()
    assert not made["token_type_ids"].any()
    np.testing.assert_array_equal(made["position_ids"], [range(5), range(5)])
    assert made["use_cache"]
    assert made["pixels"].dtype == np.float16
    assert len(np.unique(made["pixels"])) > 1


def test_same_seed_same_values() -> None:
    x = ModelInput("x", FLOAT, (3, 4))
    np.testing.assert_array_equal(feeds(x)["x"], feeds(x)["x"])
    assert (feeds(x)["x"] != feeds(x, seed=1)["x"]).any()


SAMPLES = Samples(
    {
        "ids": np.array([[7, 8, 9, 0], [0, 0, 5, 6]]),
        "mask": np.array([[1, 1, 1, 0], [0, 0, 1, 1]]),
        "extra": np.array([[1.0], [2.0]], np.float32),
    },
    mask_name="mask",
)
IDS, MASK = ModelInput("ids", INT64, ("b", "s")), ModelInput("mask", INT64, ("b", "s"))
EXTRA = ModelInput("extra", FLOAT, ("b", 1))


def test_samples_are_repeated_without_their_padding() -> None:
    made = feeds(IDS, MASK, EXTRA, batch=3, length=5, samples=SAMPLES)
    np.testing.assert_array_equal(made["ids"], [[7, 8, 9, 7, 8], [5, 6, 5, 6, 5], [7, 8, 9, 7, 8]])
    assert made["mask"].all()
    np.testing.assert_array_equal(made["extra"], [[1], [2], [1]])


def test_samples_are_cut() -> None:
    made = feeds(IDS, batch=1, length=2, samples=SAMPLES)
    np.testing.assert_array_equal(made["ids"], [[7, 8]])


def test_fixed_dimensions_win_over_batch_and_length() -> None:
    made = feeds(ModelInput("ids", INT64, (1, 3)), batch=2, length=9, samples=SAMPLES)
    assert made["ids"].shape == (1, 3)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (ModelInput("absent", INT64, ("b",)), "no array for the model's input 'absent'"),
        (ModelInput("ids", INT64, ("b", "s", 1)), "with 2 axes"),
        (ModelInput("ids", FLOAT, ("b", "s")), "int64"),
    ],
)
def test_samples_that_do_not_fit(wanted: ModelInput, message: str) -> None:
    with pytest.raises(DataError, match=message):
        feeds(wanted, samples=SAMPLES)


def test_model_inputs_leave_defaults_out() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.INT64, ["b", 3, None])
    w = helper.make_tensor_value_info("w", TensorProto.FLOAT, [1])
    assert model_inputs(model(x, w, defaults=("w",))) == (ModelInput("x", INT64, ("b", 3, None)),)


@pytest.mark.parametrize(
    "value",
    [
        helper.make_tensor_value_info("x", TensorProto.STRING, [1]),
        helper.make_tensor_value_info("x", TensorProto.BFLOAT16, [1]),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None),
    ],
)
def test_inputs_that_cannot_be_made_up(value: onnx.ValueInfoProto) -> None:
    with pytest.raises(DataError, match=r"'x'.*pass --inputs"):
        model_inputs(model(value))


def test_unreadable_models(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelFileError, match=r"text\.onnx is damaged"):
        load_structure(tmp_path / "text.onnx")
    with pytest.raises(ModelFileError, match="cannot read"):
        load_structure(tmp_path / "absent.onnx")
