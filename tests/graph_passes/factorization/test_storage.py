"""Factors that the file holds rounded: what is computed from them is what the plan says."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import onnx
import pytest
import small_models as small
from forms import FORMS
from graphs import compress, listing, model, operators, parity, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization import (
    METHODS,
    Factorization,
    MomentAccumulator,
    make_method,
)
from compress_onnx.graph_passes.factorization.base import Term
from compress_onnx.graph_passes.factorization.error import activation_error, weight_error
from compress_onnx.graph_passes.factorization.gauss_newton import damped_half
from compress_onnx.graph_passes.factorization.storage import INTEGERS, Storage, pack
from compress_onnx.graph_passes.planning.plan import CompressionPlan, MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.rewriting.trainable import factors
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.files.model_file import load_model, model_size
from compress_onnx.pipeline.measure.kernel_times import executed_op_counts
from compress_onnx.pipeline.recipe import RecoverySpec
from compress_onnx.pipeline.recipes.sweep import grid
from compress_onnx.pipeline.recover.recover import recover
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run

Float64 = NDArray[np.float64]

FLOAT32 = np.dtype(np.float32)
ROUNDED: tuple[Storage, ...] = ("float16", "int8", "int4")
SEEDS = st.integers(0, 2**32 - 1)
properties = settings(max_examples=40, deadline=None)


def trained(seed: int, rows: int = 32, columns: int = 24) -> Float64:
    """A random matrix whose singular values fall off, as those of trained weights do."""
    return small.weight(np.random.default_rng(seed), rows, columns)


def stages(
    weight: Float64, count: int, rank: int, store: Storage, layout: str = "branches"
) -> Factorization:
    method = make_method("svdlora", {"stages": count, "layout": layout})
    return method.decompose(weight.astype(np.float32), None).factorize(rank, store)


def left_over(weight: Float64, terms: Sequence[Term]) -> list[float]:
    """Errors after each of ``terms``."""
    sums = [Factorization(tuple(terms[:count])) for count in range(1, len(terms) + 1)]
    return [weight_error(weight, factorization) for factorization in sums]


class TestRounding:
    @properties
    @given(SEEDS, st.sampled_from(["int8", "int4"]), st.integers(1, 30), st.integers(1, 20))
    def test_integers_have_one_scale_for_each_rank_index(
        self, seed: int, store: Storage, rows: int, rank: int
    ) -> None:
        spread = np.exp(np.random.default_rng(seed).standard_normal(rank))
        factor = np.random.default_rng(seed).standard_normal((rows, rank)) * spread
        packed = pack(factor, store, FLOAT32, axis=0)
        assert packed.scale.shape == (1, rank)
        assert packed.numbers.dtype == np.int8
        assert np.abs(packed.numbers).max() <= INTEGERS[store]
        np.testing.assert_array_equal(
            packed.values(FLOAT32), packed.numbers.astype(np.float32) * packed.scale
        )
        step = np.abs(factor).max(axis=0) / INTEGERS[store]
        textbook = np.square(np.rint(factor / step) * step - factor).sum(axis=0)
        ours = np.square(packed.values(FLOAT32) - factor).sum(axis=0)
        assert np.all(ours <= textbook * (1 + 1e-3) + 1e-12 * np.square(factor).sum(axis=0))

    def test_clipping_pays_where_one_number_sticks_out(self) -> None:
        factor = np.random.default_rng(1).standard_normal((400, 1))
        factor[0] = 12
        step = 12 / INTEGERS["int4"]
        textbook = np.linalg.norm(np.rint(factor / step) * step - factor)
        ours = np.linalg.norm(pack(factor, "int4", FLOAT32, 0).values(FLOAT32) - factor)
        assert ours < 0.8 * textbook

    @pytest.mark.parametrize("store", ROUNDED)
    @pytest.mark.parametrize("size", [0.0, 1e-44])
    def test_what_is_next_to_nothing_becomes_zero(self, store: Storage, size: float) -> None:
        values = pack(np.full((3, 2), size), store, FLOAT32, 0).values(FLOAT32)
        assert np.abs(values).max() <= size

    def test_float16_says_what_it_cannot_hold(self) -> None:
        with pytest.raises(RequestError, match=r"do not fit into float16"):
            pack(np.full((2, 2), 1e5), "float16", FLOAT32, 0)
        assert pack(np.full((2, 2), 1e5), "int8", FLOAT32, 0).values(FLOAT32).max() > 9e4

    def test_a_weight_of_sixteen_bits_is_no_smaller_as_float16(self) -> None:
        assert pack(np.ones((2, 2)), "float16", np.dtype(np.float16), 0) is None
        assert pack(np.ones((2, 2)), "int8", np.dtype(np.float16), 0) is not None

    @pytest.mark.parametrize("name", METHODS)
    @pytest.mark.parametrize("store", ROUNDED)
    def test_every_method_rounds_its_factors(self, name: str, store: Storage) -> None:
        from test_factorization import TestEveryMethod

        weight, stats = TestEveryMethod.problem((24, 16))
        decomposition = make_method(name).decompose(weight, stats)
        exact, rounded = decomposition.factorize(16), decomposition.factorize(16, store)
        errors = weight_error(weight, exact), weight_error(weight, rounded)
        assert errors[0] < 1e-6 < errors[1] < {"float16": 1e-3, "int8": 0.05, "int4": 0.6}[store]
        for term in rounded.terms:
            for values, packed in zip((term.down, term.up), term.packed, strict=True):
                assert packed.storage == store
                np.testing.assert_array_equal(values, packed.values(FLOAT32))
        if rounded.bias is not None:  # what rounding does to the mean is corrected, too
            residual = stats.mean @ (weight - rounded.product())
            np.testing.assert_allclose(rounded.bias, residual, rtol=1e-6, atol=1e-9)


class TestStages:
    @properties
    @given(SEEDS, st.integers(2, 6), st.sampled_from(ROUNDED))
    def test_each_stage_leaves_less_than_the_one_before(
        self, seed: int, count: int, store: Storage
    ) -> None:
        weight = trained(seed)
        errors = left_over(weight, stages(weight, count, 24, store).terms)
        assert len(errors) == count
        assert all(later < earlier for earlier, later in pairwise(errors))

    @properties
    @given(SEEDS, st.integers(2, 6))
    def test_exact_stages_change_nothing(self, seed: int, count: int) -> None:
        weight = trained(seed)
        one, many = (weight_error(weight, stages(weight, n, 12, "same")) for n in (1, count))
        assert many == pytest.approx(one, rel=1e-5)

    @properties
    @given(SEEDS, st.sampled_from(["int8", "int4"]))
    def test_a_stage_factors_what_is_really_left(self, seed: int, store: Storage) -> None:
        """Stages that look at unrounded residuals repair nothing, and must not pass for these."""
        weight = trained(seed).astype(np.float32).astype(np.float64)
        first, second = stages(weight, 2, 24, store).terms

        def stage(residual: Float64) -> Term:
            u, s, vt = np.linalg.svd(residual, full_matrices=False)
            return Term.rounded(u[:, :12] * s[:12], vt[:12], FLOAT32, store)

        u, s, vt = np.linalg.svd(weight, full_matrices=False)
        unrounded = (u[:, :12] * s[:12]) @ vt[:12]
        repairing, blind = stage(weight - first.product()), stage(weight - unrounded)

        def reached(term: Term) -> float:
            return weight_error(weight, Factorization((first, term)))

        assert reached(second) == pytest.approx(reached(repairing), rel=1e-3)
        assert reached(blind) > 1.05 * reached(second)

    @properties
    @given(SEEDS, st.integers(2, 5))
    def test_stages_work_in_the_metric_of_the_inputs_too(self, seed: int, count: int) -> None:
        rng = np.random.default_rng(seed)
        weight, rows = trained(seed).astype(np.float32), rng.standard_normal((100, 32))
        accumulator = MomentAccumulator(32)
        accumulator.update(rows @ rng.standard_normal((32, 32)) + 1)
        stats = accumulator.result()

        def reached(stages: int, store: Storage) -> float:
            decomposition = make_method("asvd", {"stages": stages}).decompose(weight, stats)
            factorization = decomposition.factorize(20, store)
            residual = stats.mean @ (weight - factorization.product())
            np.testing.assert_allclose(factorization.bias, residual, rtol=1e-5, atol=1e-7)
            return activation_error(weight, factorization, [stats])

        assert reached(count, "same") == pytest.approx(reached(1, "same"), rel=1e-3, abs=1e-6)
        assert reached(count, "int4") < reached(1, "int4")

    @pytest.mark.parametrize("name", ["svdlora", "asvd", "gauss-newton"])
    def test_every_method_with_stages(self, name: str) -> None:
        from test_factorization import TestEveryMethod

        weight, stats = TestEveryMethod.problem((24, 16))

        left = np.eye(24) if name == "svdlora" else stats.root
        right = damped_half(stats.gradients.moment, 0.02) if name == "gauss-newton" else np.eye(16)

        def error(stages: int, store: Storage) -> float:
            decomposition = make_method(name, {"stages": stages}).decompose(weight, stats)
            lost = left @ (weight - decomposition.factorize(16, store).product()) @ right
            return float(np.linalg.norm(lost) / np.linalg.norm(left @ weight @ right))

        assert error(3, "same") < 1e-6
        assert error(3, "int4") < 0.8 * error(1, "int4")

    def test_stages_repair_more_the_coarser_the_storage(self) -> None:
        weight = trained(3, 64, 48)

        def gain(store: Storage) -> float:
            one, four = (weight_error(weight, stages(weight, n, 32, store)) for n in (1, 4))
            return one / four

        assert gain("same") == pytest.approx(1, abs=1e-4)
        assert gain("float16") == pytest.approx(1, abs=1e-2)  # the tail is far above the rounding
        assert gain("int8") > 1.1
        assert gain("int4") > gain("int8")

    @pytest.mark.parametrize("store", ["same", *ROUNDED])
    def test_layouts_hold_the_same_numbers(self, store: Storage) -> None:
        weight = trained(4)
        (merged,) = stages(weight, 3, 20, store, "merged").terms
        branches = stages(weight, 3, 20, store).terms
        np.testing.assert_array_equal(merged.down, np.hstack([t.down for t in branches]))
        np.testing.assert_array_equal(merged.up, np.vstack([t.up for t in branches]))
        if store == "same":
            assert merged.packed is None
            return
        for index, join in enumerate((np.hstack, np.vstack)):
            parts = [term.packed[index] for term in branches]
            np.testing.assert_array_equal(
                merged.packed[index].numbers, join([p.numbers for p in parts])
            )
            if merged.packed[index].scale is not None:
                scales = join([part.scale for part in parts])
                np.testing.assert_array_equal(merged.packed[index].scale, scales)
            np.testing.assert_array_equal(
                merged.packed[index].values(FLOAT32), (merged.down, merged.up)[index]
            )


def request(store: Storage, name: str = "svd", **options: int | str) -> CompressionSpec:
    """As many ranks as there are, so that all error is rounding."""
    method = MethodSpec(name=name, options=options)
    return CompressionSpec(method=method, rank=10_000, allow_larger=True, store=store)


def product(opset: int = 21, dtype: type = np.float32, seed: int = 0) -> onnx.ModelProto:
    """``y = x·w``, x of any number of rows."""
    kind = {np.float16: "float16", np.float64: "double"}.get(dtype, "float")
    text = f"g ({kind}[N,32] x) => ({kind}[N,24] y) {{ y = MatMul(x, w) }}"
    return model(text, {"w": trained(seed).astype(dtype)}, opset)


def computed(proto: onnx.ModelProto, dtype: type = np.float32) -> list[Float64]:
    """The weight that the graph multiplies by: in ONNX Runtime, with and without optimizations,
    and in the reference evaluator."""
    feeds = {"x": np.eye(32, dtype=dtype)}
    outputs = [ReferenceEvaluator(proto).run(None, feeds)[0]]
    for optimization in ("all", "off"):
        session = open_session(
            proto.SerializeToString(), SessionSpec(threads=1, optimization=optimization)
        )
        outputs.append(run(session, feeds)["y"])
    return [output.astype(np.float64) for output in outputs]


def reached(
    before: onnx.ModelProto, after: onnx.ModelProto, dtype: type = np.float32
) -> list[float]:
    """The relative error of each of :func:`computed`."""
    weight = numpy_helper.to_array(before.graph.initializer[0]).astype(np.float64)
    norm = np.linalg.norm(weight)
    return [float(np.linalg.norm(y - weight) / norm) for y in computed(after, dtype)]


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


@pytest.fixture
def reference(tmp_path):
    proto = small.perceptron()
    proto.opset_import[0].version = 21
    return small.save(proto, tmp_path / "model.onnx")


def written(reference, store: Storage, **arguments):
    """The compressed file and its plan."""
    output = reference.with_name(f"{store}.onnx")
    spec = CompressionSpec(method=MethodSpec(name="svd"), params=0.5, store=store)
    return output, learn(reference).compress(spec).write(output, **arguments)


class TestFiles:
    @pytest.mark.parametrize("external", [False, True])
    def test_a_file_is_as_much_smaller_as_its_numbers(self, reference, external: bool) -> None:
        floats, plan = written(reference, "same", external_data=external)
        before = model_size(reference, floats)
        for store, bits in (("float16", 16), ("int8", 8), ("int4", 4)):
            output, rounded = written(reference, store, external_data=external)
            onnx.checker.check_model(output, full_check=True)
            size = model_size(reference, output)
            assert rounded.parameters_after == plan.parameters_after
            saved = size.reference_parameters - size.candidate_parameters
            assert saved == rounded.parameters_saved
            scales = plan.parameters_saved - rounded.parameters_saved
            ranks = sum(site.rank for site in plan.factored)
            assert scales == (0 if store == "float16" else 2 * ranks)
            wanted = plan.parameters_after * (32 - bits) // 8 - 4 * scales
            overhead = wanted - (before.candidate_bytes - size.candidate_bytes)
            assert 0 < overhead < 3500  # names and nodes

    def test_factors_of_a_large_model_wait_on_the_disk(self, reference) -> None:
        large = small.save_external(onnx.load(reference), reference.with_name("large.onnx"))
        outputs = [written(path, "int4")[0].read_bytes() for path in (reference,)]
        data = small.save_rows(reference.with_name("rows.npz"))
        feeds = dict(np.load(data))
        expected = run(open_session(outputs[0]), feeds)["y"]
        output, _ = written(large, "int4")
        np.testing.assert_array_equal(run(open_session(output), feeds)["y"], expected)

    @pytest.mark.parametrize("store", ROUNDED)
    def test_onnx_runtime_folds_what_decodes(self, reference, store: Storage) -> None:
        counts = [
            executed_op_counts(written(reference, kind)[0], SessionSpec(threads=1))
            for kind in ("same", store)
        ]
        assert counts[0] == counts[1]

    @pytest.mark.parametrize("store", ROUNDED)
    def test_rounded_factors_are_not_trained(self, reference, store: Storage) -> None:
        output, _ = written(reference, store)
        candidate = load_model(output)
        assert not factors(candidate)
        rows = Samples({"x": np.ones((20, small.FEATURES), np.float32)})
        with pytest.raises(RequestError, match="rounded factors cannot be trained"):
            recover(
                reference,
                candidate,
                rows,
                RecoverySpec(budget=None, steps=1),
                data_folder=output.parent,
            )


@pytest.mark.parametrize("store", ["same", *ROUNDED])
def test_a_budget_of_bytes_counts_what_is_stored(reference, store: Storage) -> None:
    output = reference.with_name("small.onnx")
    spec = CompressionSpec(method=MethodSpec(name="svd"), bytes=0.1, store=store, rank_multiple=1)
    plan = learn(reference).compress(spec).write(output)
    weights = sum(
        value.const_value.nbytes
        for name, value in load_model(output).graph.initializers.items()
        if ".lowrank." in name
    )
    dense = 4 * plan.parameters_before
    assert weights == plan.cost.after
    assert 0.06 * dense < weights <= 0.1 * dense


def test_a_sweep_takes_stores_as_an_axis() -> None:
    variants = grid(CompressionSpec(), [], {}, [], ["same", "int8"])
    assert [variant.store for variant in variants] == ["same", "int8"]
    with pytest.raises(RequestError, match="store"):
        grid(CompressionSpec(), [], {}, [], ["int3"])


def test_stacks_are_rounded_matrix_by_matrix() -> None:
    from compress_onnx.graph_passes.factorization.stack import decompose

    matrices = np.stack([trained(seed) * 10.0**seed for seed in range(3)]).astype(np.float32)
    whole = decompose(make_method("svd"), matrices, [None] * 3).factorize(6, "int4")
    for index, matrix in enumerate(matrices):
        alone = make_method("svd").decompose(matrix, None).factorize(6, "int4")
        np.testing.assert_array_equal(whole.terms[0].down[index], alone.terms[0].down)
        np.testing.assert_array_equal(
            whole.terms[0].packed[1].scale[index], alone.terms[0].packed[1].scale
        )
