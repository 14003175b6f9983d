"""Defects that are planted in real exports: the node is found, and the cause is named."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import hf_models
import numpy as np
import onnx
import pytest
from exporting import export_to
from onnx import TensorProto, helper, numpy_helper

from compress_onnx.pipeline.divergence.find import compare_inside

# As many positions as a head is wide, so that swapped factors and axes still fit.
BATCH, HEADS, LENGTH = 3, 8, 4


class Planted:
    """A graph to damage.

    Args:
        model: changed in place.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.graph = model, model.graph
        self.stored = {tensor.name: tensor for tensor in self.graph.initializer}

    def nodes(self, operator: str) -> list[onnx.NodeProto]:
        return [node for node in self.graph.node if node.op_type == operator]

    def readers(self, value: str) -> list[onnx.NodeProto]:
        return [node for node in self.graph.node if value in node.input]

    def constant(self, name: str) -> np.ndarray | None:
        if name in self.stored:
            return numpy_helper.to_array(self.stored[name])
        for node in self.graph.node:
            if node.op_type == "Constant" and name in node.output:
                return numpy_helper.to_array(node.attribute[0].t)
        return None

    def replace_constant(self, node: onnx.NodeProto, place: int, array: np.ndarray) -> None:
        """Give ``node`` alone another constant."""
        name = f"planted.{place}"
        self.graph.initializer.append(numpy_helper.from_array(np.array(array, order="C"), name))
        node.input[place] = name

    def bypass(self, node: onnx.NodeProto, place: int) -> str:
        """Take ``node`` out: readers get its input ``place``.

        Returns:
            What the first of them computes that is more than another shape.
        """
        readers = self.readers(node.output[0])
        for reader in readers:
            names = [node.input[place] if n == node.output[0] else n for n in reader.input]
            reader.input[:] = names
        self.graph.node.remove(node)
        while readers[0].op_type == "Reshape":
            readers = self.readers(readers[0].output[0])
        return readers[0].output[0]

    def square_product(self) -> tuple[onnx.NodeProto, np.ndarray]:
        """The first product with a square weight."""
        for node in self.nodes("MatMul"):
            weight = self.constant(node.input[1])
            if weight is not None and weight.shape == (32, 32):
                return node, weight
        raise AssertionError("no square weight")

    def bias(self) -> onnx.NodeProto:
        """The first Add of a stored vector."""
        for node in self.nodes("Add"):
            for name in node.input:
                array = self.constant(name)
                if array is not None and array.ndim == 1 and array.size > 1:
                    return node
        raise AssertionError("no bias")

    def residual(self) -> onnx.NodeProto:
        """The Add of two computed values in front of the second normalization."""
        value = self.nodes("LayerNormalization")[1].input[0]
        return next(node for node in self.graph.node if value in node.output)


def lost_bias(it: Planted) -> str:
    node = it.bias()
    return it.bypass(node, 0 if it.constant(node.input[0]) is None else 1)


def transposed_weight(it: Planted) -> str:
    node, weight = it.square_product()
    it.replace_constant(node, 1, weight.T)
    return node.output[0]


def clipped_weight(it: Planted) -> str:
    node, weight = it.square_product()
    limit = np.abs(weight).max() / 3
    it.replace_constant(node, 1, np.clip(weight, -limit, limit))
    return node.output[0]


def scaled_weight(it: Planted) -> str:
    node, weight = it.square_product()
    it.replace_constant(node, 1, weight * np.float32(1.5))
    return node.output[0]


def rounded_weight(it: Planted) -> str:
    node, weight = it.square_product()
    step = np.abs(weight).max() / 31
    it.replace_constant(node, 1, (np.round(weight / step) * step).astype(np.float32))
    return node.output[0]


def weight_of_another_layer(it: Planted) -> str:
    node, weight = it.square_product()
    others = (it.constant(other.input[1]) for other in reversed(it.nodes("MatMul")))
    other = next(o for o in others if o is not None and o.shape == weight.shape)
    it.replace_constant(node, 1, other)
    return node.output[0]


def wrong_axis(it: Planted) -> str:
    node = it.nodes("Softmax")[0]
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("axis", 1))
    return node.output[0]


def wrong_permutation(it: Planted) -> str:
    for node in it.nodes("Transpose"):
        permutation = list(helper.get_node_attr_value(node, "perm"))
        if permutation == [0, 2, 1, 3]:
            node.attribute[0].CopyFrom(helper.make_attribute("perm", [0, 2, 3, 1]))
            return node.output[0]
    raise AssertionError("no heads")


def wrong_epsilon(it: Planted) -> str:
    node = it.nodes("LayerNormalization")[1]
    kept = [a for a in node.attribute if a.name != "epsilon"]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("epsilon", 0.5)])
    return node.output[0]


def lost_residual(it: Planted) -> str:
    node = it.residual()
    return it.bypass(node, 0)


def off_by_one(it: Planted) -> str:
    """The pooler reads the first token; now it reads the second."""
    for node in it.nodes("Gather"):
        index = it.constant(node.input[1])
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        if axis == 1 and index is not None and not index.any():
            break
    it.replace_constant(node, 1, np.ones_like(index))
    return node.output[0]


def swapped_inputs(it: Planted) -> str:
    """Of queries and keys, in front of the first Softmax."""
    makers = {name: node for node in it.graph.node for name in node.output}
    product = it.nodes("Softmax")[0]
    while product.op_type != "MatMul":
        product = makers[next(name for name in product.input if name in makers)]
    product.input[:] = list(reversed(product.input))
    return product.output[0]


def overflow_of_half_floats(it: Planted) -> str:
    """The sum in front of the second normalization, which no scale reaches, in float16."""
    node = it.residual()
    kept = node.output[0]
    node.output[0] = "planted.sum"
    cast = helper.make_node(
        "Cast", ["planted.sum"], ["planted.half"], "to half", to=TensorProto.FLOAT16
    )
    back = helper.make_node("Cast", ["planted.half"], [kept], "back", to=TensorProto.FLOAT)
    place = list(it.graph.node).index(node) + 1
    it.graph.node.insert(place, cast)
    it.graph.node.insert(place + 1, back)
    return "planted.half"


def another_activation(it: Planted) -> str:
    for operator in ("Gelu", "Erf"):
        for node in it.nodes(operator):
            node.op_type = "Tanh"
            del node.attribute[:]
            return node.output[0]
    raise AssertionError("no activation")


def bias_twice(it: Planted) -> str:
    node = it.bias()
    stored = next(name for name in node.input if it.constant(name) is not None)
    kept = node.output[0]
    node.output[0] = "planted.once"
    again = helper.make_node("Add", ["planted.once", stored], [kept], "again")
    it.graph.node.insert(list(it.graph.node).index(node) + 1, again)
    return kept


DEFECTS: dict[Callable[[Planted], str], str] = {
    lost_bias: r"a lost bias \(",
    transposed_weight: r"is transposed",
    clipped_weight: r"is clipped to ±",
    scaled_weight: r"is 1\.5 times the reference's",
    rounded_weight: r"rounded",
    weight_of_another_layer: r"is another one",
    wrong_axis: r"the attribute axis of Softmax is 1, not -1",
    wrong_permutation: r"the attribute perm of Transpose is \[0, 2, 3, 1\], not \[0, 2, 1, 3\]",
    wrong_epsilon: r"the attribute epsilon of LayerNormalization is 0\.5",
    lost_residual: r"a lost Add of two values: a residual",
    off_by_one: r"input 1 of Gather .* is \[?1\]?, not \[?0\]?",
    swapped_inputs: r"the inputs of MatMul are swapped",
    overflow_of_half_floats: r"overflow of float16",
    another_activation: r"Tanh where the reference has (Gelu|Erf)",
    bias_twice: r"an extra bias",
}


@pytest.fixture(scope="module", params=["dynamo", "optimum"])
def export(request, tmp_path_factory) -> onnx.ModelProto:
    folder = tmp_path_factory.mktemp("export")
    model = hf_models.save(
        hf_models.bert("BertForSequenceClassification", num_attention_heads=HEADS), folder / "bert"
    )
    settings = {"task": "text-classification", "exporter": request.param, "opset": 18}
    return onnx.load(export_to(folder, model, **settings).path)


def feeds(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = rng.integers(2, hf_models.VOCABULARY, (BATCH, LENGTH))
    mask = np.ones_like(ids)
    mask[0, -1] = 0
    known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {value.name: known[value.name] for value in model.graph.input}


def damaged(export: onnx.ModelProto, defect, folder: Path) -> tuple[Path, Path, str]:
    reference, candidate = onnx.ModelProto(), onnx.ModelProto()
    reference.CopyFrom(export)
    if defect is overflow_of_half_floats:
        for name in norm_scales(reference)[:1]:
            grown(reference, name)
    candidate.CopyFrom(reference)
    guilty = defect(Planted(candidate))
    onnx.save(reference, folder / "reference.onnx")
    onnx.save(candidate, folder / "candidate.onnx")
    return folder / "reference.onnx", folder / "candidate.onnx", guilty


def norm_scales(model: onnx.ModelProto) -> list[str]:
    """What the normalizations multiply by, in order."""
    return [node.input[1] for node in model.graph.node if node.op_type == "LayerNormalization"]


def grown(model: onnx.ModelProto, name: str, factor: float = 1e6) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name)
            )


@pytest.mark.slow
@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_each_is_found_and_named(export, defect, tmp_path):
    reference, candidate, guilty = damaged(export, defect, tmp_path)
    inside = compare_inside(reference, candidate, feeds(export))
    found = inside.divergence
    assert found is not None
    assert found.candidate.tensor == guilty, found
    assert re.search(DEFECTS[defect], found.cause), found
    assert re.search("encoder|pooler|again|to half", found.candidate.module)
    assert found.error_before <= inside.tolerance


@pytest.mark.slow
def test_two_equal_graphs_do_not_part(export, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(export, path)
    inside = compare_inside(path, path, feeds(export))
    assert inside.divergence is None
    assert {one.error for one in inside.depth} == {0.0}
