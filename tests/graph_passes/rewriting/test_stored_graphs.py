"""Graphs whose factors are rounded compute what the plan says."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from forms import FORMS
from graphs import compress, listing, model, operators, parity, weights
from onnx import TensorProto, numpy_helper
from stored import computed, product, reached, request, trained

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization.storage import Storage
from compress_onnx.graph_passes.planning.plan import CompressionPlan, MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.runtime.session import open_session, run

ROUNDED: tuple[Storage, ...] = ("float16", "int8", "int4")


class TestGraphs:
    @pytest.mark.parametrize("store", ROUNDED)
    @pytest.mark.parametrize("layout", ["merged", "branches"])
    def test_the_error_in_the_plan_is_that_of_the_graph(self, store: Storage, layout: str) -> None:
        before = product()
        after, plan = compress(before, request(store, "svdlora", stages=2, layout=layout))
        stated = plan.sites[0].error.weight
        assert reached(before, after) == pytest.approx([stated] * 3, rel=1e-3)
        # One scale that is 5 % off must not go unnoticed.
        damaged = onnx.ModelProto.FromString(after.SerializeToString())
        tensor = next(t for t in damaged.graph.initializer if t.name.startswith("w.lowrank.down."))
        if store != "float16":
            tensor = next(t for t in damaged.graph.initializer if t.name.endswith("down.scale"))
        numbers = numpy_helper.to_array(tensor) * np.asarray(1.05, np.float32)
        kind = np.float16 if store == "float16" else np.float32
        tensor.CopyFrom(numpy_helper.from_array(numbers.astype(kind), tensor.name))
        assert min(reached(before, damaged)) > 1.01 * stated

    @pytest.mark.parametrize("store", ROUNDED)
    def test_layouts_compute_the_same(self, store: Storage) -> None:
        merged, branches = (
            compress(product(), request(store, "svdlora", stages=3, layout=layout))[0]
            for layout in ("merged", "branches")
        )
        np.testing.assert_allclose(computed(merged), computed(branches), atol=1e-5)

    @pytest.mark.parametrize("store", ROUNDED)
    @pytest.mark.parametrize("name", [name for name in FORMS if name != "packed QKV"])
    def test_every_form(self, name: str, store: Storage) -> None:
        before, form = FORMS[name].build(21), FORMS[name]
        after, plan = compress(before, request(store))
        assert [site.store for site in plan.factored] == [store] * form.sites
        tolerance = {"float16": 2e-3, "int8": 0.03, "int4": 0.4}[store]
        assert parity(before, after, form.feeds()) < tolerance
        assert {node.reason for node in sites_after(after)} == {"already a low-rank factor"}

    @pytest.mark.parametrize("opset", [11, 12, 13, 17, 21, 23])
    @pytest.mark.parametrize("store", ["float16", "int8"])
    def test_opsets(self, store: Storage, opset: int) -> None:
        before = product(opset)
        after, plan = compress(before, request(store))
        assert after.opset_import == before.opset_import
        assert reached(before, after) == pytest.approx([plan.sites[0].error.weight] * 3, rel=1e-3)

    def test_int4_needs_an_opset_that_has_it(self) -> None:
        with pytest.raises(RequestError, match=r"opset 21, the model has 20.*int8"):
            compress(product(20), request("int4"))
        plan = compress(product(21), request("int4"))[1]
        with pytest.raises(RequestError, match="opset 21"):
            compress(product(17), plan=plan)
        after, _ = compress(product(21), request("int4"))
        assert after.ir_version >= 10

    @pytest.mark.parametrize("dtype", [np.float16, np.float64])
    @pytest.mark.parametrize("store", ["int8", "int4"])
    def test_factors_are_decoded_to_the_type_of_the_weight(
        self, store: Storage, dtype: type
    ) -> None:
        before = product(dtype=dtype)
        after, plan = compress(before, request(store))
        assert operators(after) == ["Cast", "Mul", "Cast"] * 2 + ["MatMul", "MatMul"]
        stated = plan.sites[0].error.weight
        assert reached(before, after, dtype) == pytest.approx([stated] * 3, rel=0.02)

    def test_a_plan_may_store_each_site_in_its_own_way(self) -> None:
        before = model(
            "g (float[N,8] x) => (float[N,8] z) { y = MatMul(x, w) z = MatMul(y, v) }",
            weights(w=(8, 8), v=(8, 8)),
        )
        plan = compress(before, request("same"))[1]
        sites = [plan.sites[0].model_copy(update={"store": "int8"}), plan.sites[1]]
        edited = CompressionPlan.model_validate_json(
            plan.model_copy(update={"sites": tuple(sites)}).model_dump_json()
        )
        after, _ = compress(before, plan=edited)
        kinds = {t.name: t.data_type for t in after.graph.initializer}
        assert kinds["w.lowrank.up.int8"] == TensorProto.INT8
        assert kinds["v.lowrank.up"] == TensorProto.FLOAT


def sites_after(proto: onnx.ModelProto) -> list:
    from graphs import sites_of

    table = sites_of(proto)
    assert not table.sites
    return list(table.skipped)


class TestGoldenGraphs:
    @staticmethod
    def initializers(proto: onnx.ModelProto) -> dict[str, tuple[str, list[int]]]:
        return {
            t.name: (TensorProto.DataType.Name(t.data_type), list(t.dims))
            for t in proto.graph.initializer
        }

    @staticmethod
    def half(store: Storage) -> CompressionSpec:
        return CompressionSpec(method=MethodSpec(name="svd"), rank=5, store=store)

    def test_float16(self) -> None:
        after, _ = compress(product(), self.half("float16"))
        assert sorted(listing(after)) == [
            "w.lowrank.down = Cast(w.lowrank.down.float16)",
            "w.lowrank.up = Cast(w.lowrank.up.float16)",
            "y = MatMul(y.lowrank.down, w.lowrank.up)",
            "y.lowrank.down = MatMul(x, w.lowrank.down)",
        ]
        assert self.initializers(after) == {
            "w.lowrank.down.float16": ("FLOAT16", [32, 5]),
            "w.lowrank.up.float16": ("FLOAT16", [5, 24]),
        }

    @pytest.mark.parametrize("store", ["int8", "int4"])
    def test_integers(self, store: Storage) -> None:
        after, _ = compress(product(), self.half(store))
        assert sorted(listing(after)) == [
            "w.lowrank.down = Mul(w.lowrank.down.cast, w.lowrank.down.scale)",
            f"w.lowrank.down.cast = Cast(w.lowrank.down.{store})",
            "w.lowrank.up = Mul(w.lowrank.up.cast, w.lowrank.up.scale)",
            f"w.lowrank.up.cast = Cast(w.lowrank.up.{store})",
            "y = MatMul(y.lowrank.down, w.lowrank.up)",
            "y.lowrank.down = MatMul(x, w.lowrank.down)",
        ]
        assert self.initializers(after) == {
            f"w.lowrank.down.{store}": (store.upper(), [32, 5]),
            "w.lowrank.down.scale": ("FLOAT", [1, 5]),
            f"w.lowrank.up.{store}": (store.upper(), [5, 24]),
            "w.lowrank.up.scale": ("FLOAT", [5, 1]),
        }

    def test_weight_on_the_left(self) -> None:
        before = model(
            "g (float[32,N] x) => (float[24,N] y) { y = MatMul(w, x) }",
            {"w": trained(0).T.astype(np.float32)},
            21,
        )
        after, plan = compress(before, self.half("int8"))
        assert self.initializers(after) == {
            "w.lowrank.down.int8": ("INT8", [5, 32]),
            "w.lowrank.down.scale": ("FLOAT", [5, 1]),
            "w.lowrank.up.int8": ("INT8", [24, 5]),
            "w.lowrank.up.scale": ("FLOAT", [1, 5]),
        }
        found = run(open_session(after.SerializeToString()), {"x": np.eye(32, dtype="f4")})["y"].T
        weight = trained(0)
        error = np.linalg.norm(found - weight) / np.linalg.norm(weight)
        assert error == pytest.approx(plan.sites[0].error.weight, rel=1e-3)

    def test_experts_have_scales_of_their_own(self) -> None:
        after, _ = compress(FORMS["experts"].build(21), request("int4"))
        assert self.initializers(after)["w.lowrank.down.scale"] == ("FLOAT", [3, 1, 6])
        assert self.initializers(after)["w.lowrank.up.scale"] == ("FLOAT", [3, 6, 1])

    def test_nodes_that_decode_say_where_they_come_from(self) -> None:
        after, plan = compress(product(), self.half("int8"))
        for node in after.graph.node:
            found = {p.key: p.value for p in node.metadata_props}
            assert found["compress_onnx.site"] == plan.sites[0].site
            assert found["compress_onnx.rank"] == "5"
