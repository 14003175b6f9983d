"""Which products are linear sites, what they are called, and why the others are none."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import canonical, model, reasons, sites_of, weights
from onnx import TensorProto, helper, numpy_helper

from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.graph_passes.sites.naming import NAME_SCOPES, UniqueNames, group_of, module_path

X = "g (float[N,8] x) => (float[N,6] y)"
LONG = 3_001


def one_reason(text: str, opset: int = 17, **shapes: tuple[int, ...]) -> str:
    (reason,) = reasons(model(text, weights(**shapes), opset))
    return reason


class TestReasons:
    def test_no_weight(self) -> None:
        text = "g (float[N,8] x, float[8,M] z) => (float[N,M] y) { y = MatMul(x, z) }"
        assert one_reason(text) == "no weight: both operands are computed"

    def test_two_weights(self) -> None:
        text = f"{X} {{ c = MatMul(a, b) y = Add(x, c) }}"
        text = text.replace("x)", "x)", 1).replace("float[N,6] y", "float[N,8] y")
        assert "constant folding" in one_reason(text, a=(1, 8), b=(8, 8))

    @pytest.mark.parametrize("repeated", ["Identity", "Transpose"])
    def test_weight_behind_a_long_chain(self, repeated: str) -> None:
        text = "g (float[N,8] x) => (float[N,6] y) { u = Identity(w) y = MatMul(x, u) }"
        proto = model(text, weights(w=(8, 6)))
        values = ["w", *(f"v{i}" for i in range(LONG)), "u"]
        chain = [helper.make_node(repeated, values[i : i + 1], values[i + 1 : i + 2])
                 for i in range(LONG + 1)]  # fmt: skip
        proto.graph.node.remove(proto.graph.node[0])
        product = proto.graph.node.pop()
        proto.graph.node.extend([*chain, product])
        (site,) = sites_of(proto).sites
        assert site.weight.initializer.name == "w"
        assert site.weight.shape == (8, 6)
        assert not site.weight.transposed

    def test_weight_behind_many_paths_of_constants(self) -> None:
        joins = " ".join(f"v{i + 1} = Sum({', '.join([f'v{i}'] * 40)})" for i in range(7))
        text = "g (float[N,8] x) => (float[N,6] y) { v0 = Relu(w) " + joins + " y = MatMul(x, v7) }"
        assert one_reason(text, w=(8, 6)).startswith("weight computed by Sum from constants")

    def test_weight_that_may_be_overridden(self) -> None:
        text = "g (float[N,8] x, float[8,6] w) => (float[N,6] y) { y = MatMul(x, w) }"
        assert one_reason(text, w=(8, 6)) == (
            "weight 'w' is also a graph input: whoever runs it may override it"
        )

    @pytest.mark.parametrize("text", ["y = MatMul(w, x)", "y = Gemm<transB=1>(w, x)"])
    def test_overridable_weight_on_the_left(self, text: str) -> None:
        proto = model(
            "g (float[8,8] x, float[6,8] w) => (float[6,8] y) {" + text + "}", weights(w=(6, 8))
        )
        assert "also a graph input" in reasons(proto)[0]

    def test_vector(self) -> None:
        text = "g (float[N,8] x) => (float[N] y) { y = MatMul(x, w) }"
        assert one_reason(text, w=(8,)) == "weight 'w' has 1 dimensions: not a matrix"

    def test_weight_on_the_left_of_a_vector(self) -> None:
        text = "g (float[8] x) => (float[6] y) { y = MatMul(w, x) }"
        assert "weight on the left of an input that is a vector" in one_reason(text, w=(6, 8))

    @pytest.mark.parametrize(
        ("nodes", "x", "y", "shape"),
        [
            ("y = MatMul(x, w)", "8", "3,6", (3, 8, 6)),
            ("v = Squeeze(x) y = MatMul(v, w)", "1,8", "3,6", (3, 8, 6)),
            ("v = Squeeze(x) y = MatMul(w, v)", "8,1", "6", (6, 8)),
        ],
    )
    def test_vector_times_a_stack_or_of_unknown_rank(
        self, nodes: str, x: str, y: str, shape: tuple[int, ...]
    ) -> None:
        text = f"g (float[{x}] x) => (float[{y}] y) {{ {nodes} }}"
        assert "an input that is a vector, or of unknown rank" in one_reason(text, w=shape)

    def test_empty_weight(self) -> None:
        text = "g (float[N,8] x) => (float[N,0] y) { y = MatMul(x, w) }"
        assert one_reason(text, w=(8, 0)) == "weight 'w' is empty"

    def test_integer_weight(self) -> None:
        proto = model(
            "g (int32[N,8] x) => (int32[N,6] y) { y = MatMul(x, w) }",
            {"w": np.ones((8, 6), np.int32)},
        )
        assert reasons(proto) == ["weight 'w' has type INT32: not supported"]

    @pytest.mark.parametrize(
        ("nodes", "shape", "op_type"),
        [
            ("u = Cast<to=1>(w) y = MatMul(x, u)", (8, 6), "Cast"),
            ("u, v = Split<axis=1>(w) y = MatMul(x, u)", (8, 12), "Split"),
            ("u = Reshape(w, s) y = MatMul(x, u)", (48,), "Reshape"),
            ("u = Slice(w, zero, six, one) y = MatMul(x, u)", (8, 9), "Slice"),
            ("a = Relu(w) b = Neg(a) u = Identity(b) y = MatMul(x, u)", (8, 6), "Neg"),
            ("u = Transpose<perm=[2,0,1]>(w) v = Squeeze(u, zero) y = MatMul(x, v)", (8, 6, 1),
             "Squeeze"),
        ],
    )  # fmt: skip
    def test_weight_made_from_constants(
        self, nodes: str, shape: tuple[int, ...], op_type: str
    ) -> None:
        integers = {
            "s": np.array([8, 6]), "zero": np.array([0]), "six": np.array([6]), "one": np.array([1])
        }  # fmt: skip
        proto = model(f"{X} {{ {nodes} }}", {**weights(w=shape), **integers})
        assert reasons(proto) == [
            f"weight computed by {op_type} from constants: only plain weights are factored"
        ]

    def test_transpose_that_is_no_matrix_transpose(self) -> None:
        text = (
            "g (float[8,N,3] x) => (float[8,N,6] y) "
            "{ u = Transpose<perm=[1,0,2]>(w) y = MatMul(x, u) }"
        )
        assert "computed by Transpose" in one_reason(text, w=(3, 8, 6))

    def test_dequantized_weight(self) -> None:
        proto = model(
            f"{X} {{ u = DequantizeLinear(w, scale) y = MatMul(x, u) }}",
            {"w": np.ones((8, 6), np.int8), "scale": np.float32(0.1)},
        )
        assert "computed by DequantizeLinear" in reasons(proto)[0]

    def test_gathered_weight_is_computed(self) -> None:
        text = (
            "g (float[N,8] x, int64[1] i) => (float[1,N,6] y) { u = Gather(w, i) y = MatMul(x, u) }"
        )
        assert one_reason(text, w=(4, 8, 6)) == "no weight: both operands are computed"

    def test_tied_embedding(self) -> None:
        proto = model(
            "g (int64[N] i) => (float[N,9] y) "
            "{ e = Gather(w, i) t = Transpose<perm=[1,0]>(w) y = MatMul(e, t) }",
            weights(w=(9, 8)),
        )
        (reason,) = reasons(proto)
        assert reason.startswith("weight 'w' is also read by Gather ")
        assert reason.endswith("factoring it would remove nothing")

    def test_weight_that_is_an_output(self) -> None:
        text = "g (float[N,8] x) => (float[N,6] y, float[8,6] v) { v = Identity(w) y=MatMul(x, v) }"
        assert one_reason(text, w=(8, 6)) == "weight 'w' is a graph output"

    def test_weight_that_is_the_bias_of_another_product(self) -> None:
        text = "g (float[8,8] x) => (float[8,8] y) { y = Gemm(x, w, w) }"
        assert "also read by Gemm" in one_reason(text, w=(8, 8))

    @pytest.mark.parametrize(
        "nodes",
        [
            "a = Gemm(x, w) b = Gemm<transB=1>(x, w) y = Add(a, b)",
            "a = MatMul(x, w) b = MatMul(w, x) y = Add(a, b)",
            "a = MatMul(x, w) t = Transpose(w) b = MatMul(t, x) y = Add(a, b)",
        ],
    )
    def test_weight_read_in_two_ways(self, nodes: str) -> None:
        proto = model("g (float[8,8] x) => (float[8,8] y) {" + nodes + "}", weights(w=(8, 8)))
        assert len(reasons(proto)) == 2
        assert all("weight 'w' is read in two ways" in reason for reason in reasons(proto))

    def test_reader_that_is_no_site_spoils_the_others(self) -> None:
        proto = model(
            f"{X} {{ a = MatMul(x, w) r = Relu(w) b = MatMul(x, r) y = Add(a, b) }}",
            weights(w=(8, 6)),
        )
        assert len(reasons(proto)) == 2
        assert "also read by Relu" in reasons(proto)[1]

    def test_einsum(self) -> None:
        text = f'{X} {{ y = Einsum<equation="nk,km->nm">(x, w) }}'
        assert one_reason(text, w=(8, 6)) == (
            "Einsum 'nk,km->nm': only MatMul and Gemm are rewritten"
        )

    def test_pointwise_convolution(self) -> None:
        text = "g (float[N,8,4] x) => (float[N,6,4] y) { y = Conv(x, w) }"
        assert "convolutions are left whole" in one_reason(text, w=(6, 8, 1))

    def test_other_convolutions_are_not_listed(self) -> None:
        proto = model(
            "g (float[N,8,4] x) => (float[N,6,2] y) { y = Conv(x, w) }", weights(w=(6, 8, 3))
        )
        assert not sites_of(proto).skipped

    def test_quantized_product(self) -> None:
        proto = model(
            "g (int8[N,8] x) => (int32[N,6] y) { y = MatMulInteger(x, w) }",
            {"w": np.ones((8, 6), np.int8)},
        )
        assert reasons(proto) == ["MatMulInteger: quantized weights are not factored"]

    @pytest.mark.parametrize("op_type", ["FusedMatMul", "MatMulNBits", "Attention"])
    def test_fused_operator(self, op_type: str) -> None:
        proto = model(f"{X} {{ y = MatMul(x, w) }}", weights(w=(8, 6)))
        proto.graph.node[0].op_type, proto.graph.node[0].domain = op_type, "com.microsoft"
        assert reasons(proto) == [
            f"com.microsoft.{op_type}: a fused or quantized operator is left whole"
        ]

    def test_other_custom_operators_are_not_listed(self) -> None:
        proto = model(f"{X} {{ y = MatMul(x, w) }}", weights(w=(8, 6)))
        proto.graph.node[0].domain = "somebody.else"
        table = sites_of(proto)
        assert not table.sites
        assert not table.skipped

    def test_old_opset(self) -> None:
        text = f"{X} {{ y = MatMul(x, w) }}"
        assert one_reason(text, 10, w=(8, 6)) == "opset 10 is older than 11: convert it"

    def test_missing_operand(self) -> None:
        proto = model(f"{X} {{ y = MatMul(x, w) }}", weights(w=(8, 6)))
        proto.graph.node[0].input.pop()
        assert reasons(proto) == ["an operand is missing"]

    def test_deep_chains_of_constants_end(self) -> None:
        nodes = "".join(f"w{i + 1} = Add(w{i}, w{i}) " for i in range(200))
        text = f"{X} {{ {nodes} y = MatMul(x, w200) }}"
        assert one_reason(text, w0=(8, 6)) == "no weight: both operands are computed"


class TestBias:
    """Which Add is a bias; that it is treated rightly, test_lowrank shows."""

    @pytest.mark.parametrize(
        ("shape", "expected"),
        [((), True), ((1,), True), ((6,), True), ((1, 6), True), ((1, 1, 6), True), ((1, 1), True),
         ((5, 6), False), ((6, 1), False), ((1, 1, 1, 6), False), ((2, 1, 6), False)],
    )  # fmt: skip
    def test_by_shape(self, shape: tuple[int, ...], expected: bool) -> None:
        rank = max(len(shape), 2)
        axes = ",".join("ABCDE"[:rank])
        proto = model(
            f"g (float[N,8] x) => (float[{axes}] y) {{ m = MatMul(x, w) y = Add(m, b) }}",
            weights(w=(8, 6), b=shape),
        )
        (site,) = sites_of(proto).sites
        assert (site.bias is not None) == expected

    def test_bias_of_a_single_output_is_not_a_row(self) -> None:
        proto = model(
            "g (float[N,8] x) => (float[N,5] y) { m = MatMul(x, w) y = Add(m, b) }",
            weights(w=(8, 1), b=(5,)),
        )
        assert sites_of(proto).sites[0].bias is None

    def test_add_behind_a_product_with_another_reader_is_no_bias(self) -> None:
        """A corrected bias would reach one of the readers only."""
        proto = model(
            "g (float[N,8] x) => (float[N,6] y) "
            "{ m = MatMul(x, w) a = Add(m, b) r = Relu(m) y = Mul(a, r) }",
            weights(w=(8, 6), b=(6,)),
        )
        assert sites_of(proto).sites[0].bias is None

    def test_overridable_bias_is_not_edited(self) -> None:
        proto = model(
            "g (float[N,8] x, float[6] b) => (float[N,6] y) { m = MatMul(x, w) y = Add(m, b) }",
            weights(w=(8, 6), b=(6,)),
        )
        assert sites_of(proto).sites[0].bias is None


class TestCanonicalForm:
    def test_nameless_and_equal_node_names_become_distinct(self) -> None:
        proto = model(
            f"{X} {{ a = MatMul(x, w) b = MatMul(x, w) c = Add(a, b) y = Add(c, a) }}",
            weights(w=(8, 6)),
        )
        for node, name in zip(proto.graph.node, ["same", "same", "", ""], strict=True):
            node.name = name
        names = [node.name for node in canonical(proto).graph]
        assert names[:2] == ["same", "same_2"]
        assert len(set(names)) == 4
        assert all(names)

    def test_interface_keeps_its_names(self) -> None:
        proto = model(
            "g (float[N,8] x, bool c) => (float[N,8] y) { y = If(c) <then_branch = t () => "
            "(float[N,8] x_2) { x_2 = Relu(x) }, else_branch = e () => (float[N,8] x_2) "
            "{ x_2 = Neg(x) }> }",
            {},
        )
        graph = canonical(proto).graph
        assert [v.name for v in (*graph.inputs, *graph.outputs)] == ["x", "c", "y"]

    def test_is_stable(self) -> None:
        proto = model(f"{X} {{ a = MatMul(x, w) y = Relu(a) }}", weights(w=(8, 6)))
        once = ir.to_proto(canonical(proto))
        assert ir.to_proto(canonical(once)).SerializeToString() == once.SerializeToString()


class TestNames:
    @staticmethod
    def node(name: str | None, scopes: str | None = None) -> ir.Node:
        metadata = {} if scopes is None else {NAME_SCOPES: scopes}
        return ir.node("MatMul", [], name=name, metadata_props=metadata)

    @pytest.mark.parametrize(
        ("name", "scopes", "parameter", "expected"),
        [
            ("node_linear_3", "['', 'vit.layer.0', 'vit.layer.0.query', 'linear_3']", "val_2",
             "vit.layer.0.query"),
            ("/layer/layer.0/attention/query/MatMul", None, "onnx::MatMul_12",
             "layer.0.attention.query"),
            ("/MatMul_3", None, "encoder.fc1.weight", "encoder.fc1"),
            ("MatMul_3", None, "encoder.fc1.weight_quantized", "encoder.fc1"),
            ("MatMul_3", None, "onnx::MatMul_12", "MatMul_3"),
            ("MatMul_3", "['', 'linear_3']", "val_2", "MatMul_3"),
            ("MatMul_3", "[__import__('os')]", "val_2", "MatMul_3"),
            ("MatMul_3", "no list", "val_2", "MatMul_3"),
            ("MatMul_3", "[", "val_2", "MatMul_3"),
        ],
    )  # fmt: skip
    def test_module_path(
        self, name: str, scopes: str | None, parameter: str, expected: str
    ) -> None:
        assert module_path(self.node(name, scopes), (ir.Value(name=parameter), None)) == expected

    @pytest.mark.parametrize(
        ("path", "group"),
        [
            ("encoder.layer.0.attention.self.query", "attention"),
            ("transformer.h.0.attn.c_attn", "attention"),
            ("model.layers.0.self_attn.q_proj", "attention"),
            ("decoder.block.0.layer.1.EncDecAttention.o", "attention"),
            ("model.layers.0.mlp.gate_proj", "mlp"),
            ("encoder.layer.0.intermediate.dense", "mlp"),
            ("transformer.layer.0.ffn.lin1", "mlp"),
            ("encoder.block.0.layer.1.DenseReluDense.wi_0", "mlp"),
            ("classifier", "other"),
            ("pooler.dense", "other"),
            ("MatMul_3", "other"),
        ],
    )
    def test_group(self, path: str, group: str) -> None:
        assert group_of(path) == group

    def test_equal_paths_are_numbered(self) -> None:
        proto = model(
            f"{X} {{ a = MatMul(x, v) b = MatMul(a, v) y = MatMul(b, w) }}",
            weights(v=(8, 8), w=(8, 6)),
        )
        for node in proto.graph.node:
            node.name = "/mlp/MatMul"
        assert [site.name for site in sites_of(proto).sites] == [
            "mlp", "mlp#2", "mlp#3"
        ]  # fmt: skip

    def test_unique_names(self) -> None:
        names = UniqueNames(["a"], separator="_")
        assert [names(name) for name in ["b", "a", "a", "b", "a_2"]] == [
            "b", "a_2", "a_3", "b_2", "a_2_2"
        ]  # fmt: skip


def test_sites_come_in_graph_order_with_their_shapes() -> None:
    proto = model(
        "g (float[N,8] x) => (float[N,4] y) { a = MatMul(x, w) y = Gemm<transB=1>(a, v) }",
        weights(w=(8, 6), v=(4, 6)),
    )
    assert [(s.weight.key, s.in_features, s.out_features) for s in sites_of(proto).sites] == [
        ("w", 8, 6), ("v.T", 6, 4)
    ]  # fmt: skip


def test_finding_sites_reads_no_numbers() -> None:
    tensor = ir.LazyTensor(lambda: pytest.fail("read"), ir.DataType.FLOAT, ir.Shape([8, 6]))
    w = ir.Value(name="w", shape=tensor.shape, const_value=tensor)
    x = ir.Value(name="x", shape=ir.Shape(["N", 8]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("MatMul", [x, w])
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 17})
    assert len(find_sites(ir.Model(graph, ir_version=8)).sites) == 1


def test_weight_initializer_kept_as_raw_or_typed_data_is_the_same() -> None:
    array = weights(w=(8, 6))["w"]
    proto = model(f"{X} {{ y = MatMul(x, w) }}", {"w": array})
    typed = helper.make_tensor("w", TensorProto.FLOAT, array.shape, array.ravel())
    other = onnx.ModelProto.FromString(proto.SerializeToString())
    other.graph.initializer[0].CopyFrom(typed)
    for each in (proto, other):
        np.testing.assert_array_equal(sites_of(each).sites[0].weight.array(), array)
    assert numpy_helper.to_array(typed).dtype == np.float32
