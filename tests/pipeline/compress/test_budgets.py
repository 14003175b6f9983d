"""Budgets other than parameters, from what one inference takes to the plan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models as small
from cli_runner import start
from graphs import PLAIN_STACKED_LEFT_NESTED as GRAPH
from graphs import compress, model, sites_of, statistics, weights
from tiny_models import saved, two_layers

from compress_onnx.graph_passes.allocation.price import LinearPrice, TabulatedPrice
from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.planning.decompositions import Decompositions
from compress_onnx.graph_passes.planning.plan import CompressionPlan, MethodSpec, read_plan
from compress_onnx.graph_passes.planning.planner import make_plan
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.compress.basis import Basis, plan_on
from compress_onnx.pipeline.compress.meter import Meter, count_rows
from compress_onnx.pipeline.files.original import Original, open_original
from compress_onnx.pipeline.measure.product_times import Product, ranks_to_measure
from compress_onnx.pipeline.recipe import BenchmarkSpec
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import open_session

SVD = MethodSpec(name="svd")
TOKENS = 12
DENSE_FLOPS = 2 * small.WIDTH * small.WIDTH


def request(**settings: object) -> CompressionSpec:
    values = {"method": SVD, "allocation": "energy", "rank_multiple": 1, **settings}
    return CompressionSpec.model_validate(values)


def tensor_bytes(proto: onnx.ModelProto) -> int:
    return sum(len(tensor.raw_data) for tensor in proto.graph.initializer)


def ranks(plan: CompressionPlan) -> dict[str, int]:
    """By weight; a dense one counts as of full rank."""
    return {s.weight: s.rank or min(s.in_features, s.out_features) for s in plan.sites}


class TestBytes:
    def mixed(self) -> onnx.ModelProto:
        """The same numbers twice, in single and in half precision."""
        numbers = small.weight(np.random.default_rng(0), 48, 48)
        return model(
            "g (float[N,48] x) => (float16[N,48] y) {"
            " a = MatMul(x, single) h = Cast<to = 10>(a) y = MatMul(h, half) }",
            {"single": numbers.astype(np.float32), "half": numbers.astype(np.float16)},
        )

    def test_a_number_of_half_precision_takes_half(self) -> None:
        proto = self.mixed()
        small_proto, plan = compress(
            proto, plan=make_plan(sites_of(proto), request(bytes=0.5), damage=tails)
        )
        assert plan.budget == "50% of bytes, energy"
        assert plan.cost.unit == "bytes"
        assert plan.cost.before == tensor_bytes(proto) == 48 * 48 * (4 + 2)
        assert plan.cost.after == tensor_bytes(small_proto)
        assert 0.45 * plan.cost.before < plan.cost.after <= 0.5 * plan.cost.before

    def test_so_it_buys_more_rank_there(self) -> None:
        by_bytes = ranks(make_plan(sites_of(self.mixed()), request(bytes=0.5), damage=tails))
        by_params = ranks(make_plan(sites_of(self.mixed()), request(params=0.5), damage=tails))
        assert by_bytes["half"] > by_bytes["single"]
        assert abs(by_params["half"] - by_params["single"]) <= 1

    def test_bias_corrections_count(self) -> None:
        proto = small.encoder()  # without any bias
        stats = statistics(proto, small.sentences(length=TOKENS))
        asked = request(method=MethodSpec(name="asvd"), allocation="uniform", bytes=0.5)
        small_proto, plan = compress(proto, asked, stats)
        assert [site.bias_parameters for site in plan.factored] == [small.WIDTH] * 3
        assert plan.cost.before - plan.cost.after == tensor_bytes(proto) - tensor_bytes(small_proto)
        assert plan.cost.after <= 0.5 * plan.cost.before


def tails(weights):
    """The damage curves of weights, each the sites that share it."""
    return map(tail, weights)


def tail(sites) -> np.ndarray:
    """The squared error of the weight at each rank, as damage."""
    energies = np.linalg.svd(sites[0].weight.array().astype(np.float64), compute_uv=False) ** 2
    return np.append(np.cumsum(energies[::-1])[::-1], 0.0)


@pytest.fixture
def encoder(tmp_path: Path) -> Original:
    return open_original(small.save(small.encoder(), tmp_path / "model.onnx"))


def every_kind_of_site(folder: Path) -> Original:
    """A plain product, a stack of 3, a weight on the left, and one in the body of an If."""
    square = (24, 24)
    arrays = weights(
        plain_weight=square, stacked_weight=(3, *square), left_weight=square, nested_weight=square
    )
    proto = onnx.shape_inference.infer_shapes(model(GRAPH, arrays))
    return open_original(small.save(proto, folder / "model.onnx"))


def planned(
    subject: Original, asked: CompressionSpec, meter: Meter | None = None
) -> CompressionPlan:
    return plan_on(Basis(subject, asked, Decompositions()), meter)


def meter(subject: Original, **settings: object) -> Meter:
    return Meter(subject, BenchmarkSpec(length=TOKENS, **settings))


class TestRows:
    def test_a_head_sees_one_row_and_layers_see_tokens(self, encoder: Original) -> None:
        rows = count_rows(encoder, small.sentences(3, TOKENS))
        assert rows == {"layer.0.query": 3 * TOKENS, "layer.0.key": 3 * TOKENS, "pooler": 3}

    def test_stacks_weights_on_the_left_and_what_is_hidden(self, tmp_path: Path) -> None:
        subject = every_kind_of_site(tmp_path)
        rows = count_rows(subject, {"x": np.ones((2, 3, 24, 24), np.float32)})
        by_weight = {site.weight.key: rows.get(site.name) for site in subject.table.sites}
        # [2, 3, 24, 24] are 144 rows, also where each of 3 matrices sees 48 of them.
        assert by_weight.pop("nested_weight") is None
        assert set(by_weight.values()) == {144}
        assert len(by_weight) == 3

    def test_an_input_that_is_broadcast_counts_for_each_matrix(self, tmp_path: Path) -> None:
        proto = model(
            "g (float[5,8] x) => (float[3,5,8] y) { y = MatMul(x, w) }", weights(w=(3, 8, 8))
        )
        subject = open_original(small.save(proto, tmp_path / "model.onnx"))
        assert list(count_rows(subject, {"x": np.ones((5, 8), np.float32)}).values()) == [15]


class TestFlops:
    def plan(self, subject: Original, **settings: object) -> CompressionPlan:
        return planned(subject, request(**settings), meter(subject))

    def test_a_head_is_cheap(self, encoder: Original) -> None:
        plan = self.plan(encoder, flops=0.5)
        assert plan.budget == "50% of FLOPs, energy"
        assert plan.cost.unit == "FLOPs"
        assert plan.cost.before == DENSE_FLOPS * (2 * TOKENS + 1)
        assert 0.4 * plan.cost.before < plan.cost.after <= 0.5 * plan.cost.before
        found = ranks(plan)
        assert found["wp"] > 1.5 * max(found["wq"], found["wk"])
        assert f"FLOPs are those for inputs input_ids 1x{TOKENS}" in plan.notes[0]

    def test_without_a_benchmark_a_sample_of_median_length_counts(self, encoder: Original) -> None:
        samples = Samples(small.sentences(9, 16), mask_name="attention_mask")
        lengths = samples.inputs["attention_mask"].sum(axis=1)
        measured = Meter(encoder, samples=samples)
        plan = planned(encoder, request(flops=0.5), measured)
        assert plan.cost.before == DENSE_FLOPS * (2 * int(np.median(lengths)) + 1)

    def test_a_shared_weight_counts_at_each_site(self, tmp_path: Path) -> None:
        proto = model(
            "g (float[N,5,24] x) => (float[N,5,24] y) {"
            " a = MatMul(x, w) b = MatMul(a, w) y = MatMul(b, w) }",
            weights(w=(24, 24)),
        )
        subject = open_original(small.save(proto, tmp_path / "model.onnx"))
        plan = self.plan(subject, flops=0.5)
        assert plan.cost.before == 2 * 3 * 5 * 24 * 24
        assert len(plan.factored) == 3

    def test_what_is_hidden_stays_dense_and_says_why(self, tmp_path: Path) -> None:
        subject = every_kind_of_site(tmp_path)
        plan = self.plan(subject, flops=0.5)
        reasons = {site.weight: site.reason for site in plan.sites if site.decision == "dense"}
        hidden = "no known FLOPs inside an If, Loop or Scan: use --params"
        assert reasons["nested_weight"] == hidden
        assert plan.cost.before == 2 * 24 * 24 * (3 * 24 + 3 * 24 + 3 * 24)

    def test_somebody_has_to_count(self, encoder: Original) -> None:
        with pytest.raises(RequestError, match=r"nobody knows .* a budget of FLOPs"):
            make_plan(encoder.table, request(flops=0.5, allocation="uniform"))

    def test_a_budget_that_cannot_be_kept_is_noted(self, encoder: Original) -> None:
        asked = request(flops=0.01, allocation="uniform")
        plan = make_plan(encoder.table, asked, price=lambda _: LinearPrice(100, 2, fixed=30))
        assert {site.rank for site in plan.sites} == {1}
        assert plan.notes == (
            "the budget is not kept: 32.0% of FLOPs instead of 1.0%, as the sites' least ranks "
            "take too much",
        )


class TestLatency:
    @pytest.fixture
    def timed(self, monkeypatch: pytest.MonkeyPatch) -> list[Product]:
        """What is timed, in a world where factors of a single row gain nothing."""
        asked: list[Product] = []

        def table(product: Product, ranks: tuple[int, ...], spec: object) -> TabulatedPrice:
            asked.append(product)
            overhead = 2.0 if product.rows == 1 else 0.1
            return TabulatedPrice.fit(1.0, ranks, [overhead + rank / 20 for rank in ranks])

        monkeypatch.setattr("compress_onnx.pipeline.compress.meter.time_product", table)
        return asked

    @pytest.mark.parametrize("allocation", ["uniform", "energy"])
    @pytest.mark.usefixtures("timed")
    def test_a_site_whose_factors_are_not_faster_stays_dense(
        self, encoder: Original, allocation: str
    ) -> None:
        plan = planned(encoder, request(latency=0.6, allocation=allocation), meter(encoder))
        assert plan.budget == f"60% of latency, {allocation}"
        assert (plan.cost.unit, plan.cost.before) == ("ms", 3.0)
        assert plan.cost.after <= 0.6 * 3.0
        sites = {site.weight: site for site in plan.sites}
        assert sites["wp"].decision == "dense"
        assert sites["wp"].reason == "rank 1 would not be faster than the dense weight"
        # The head keeps its 1 ms, so 0.4 ms are left for each of the others.
        assert {sites["wq"].rank, sites["wk"].rank} <= {5, 6, 7}
        assert "measured alone on cpu" in plan.notes[0]

    def test_each_product_is_timed_once(self, encoder: Original, timed: list[Product]) -> None:
        measured = meter(encoder)
        for share in (0.5, 0.7):
            planned(encoder, request(latency=share), measured)
        shape = (small.WIDTH, small.WIDTH, ir.DataType.FLOAT)
        assert timed == [Product(1, TOKENS, *shape), Product(1, 1, *shape)]

    @pytest.mark.usefixtures("timed")
    def test_a_shared_weight_takes_the_time_of_all_its_sites(self, tmp_path: Path) -> None:
        proto = model(
            "g (float[N,5,24] x) => (float[N,5,24] y) { a = MatMul(x, w) y = MatMul(a, w) }",
            weights(w=(24, 24)),
        )
        subject = open_original(small.save(proto, tmp_path / "model.onnx"))
        plan = planned(subject, request(latency=0.5), meter(subject))
        assert plan.cost.before == 2.0
        assert plan.cost.after == pytest.approx(2 * (0.1 + plan.sites[0].rank / 20))

    @pytest.mark.parametrize(
        ("shape", "multiple", "expected"),
        [((64, 64), 8, (8, 16, 24)), ((16, 16), 16, (7,)), ((64, 1), 8, (1,)), ((2, 2), 1, (1,))],
    )
    def test_ranks_that_are_measured(
        self, shape: tuple[int, int], multiple: int, expected: tuple[int, ...]
    ) -> None:
        assert ranks_to_measure(*shape, multiple) == expected

    def test_of_a_fine_grid_only_some_ranks(self) -> None:
        found = ranks_to_measure(4096, 4096, 8)
        assert len(found) <= 16
        assert (found[0], found[-1]) == (8, 2040)

    @pytest.mark.slow
    def test_measured_for_real(self, tmp_path: Path) -> None:
        path = saved(tmp_path, two_layers((512, 512, 256))[0])
        small_path, plan_path = tmp_path / "small.onnx", tmp_path / "plan.json"
        options = ("--method", "svd", "--latency", "0.7", "--save-plan", plan_path)
        start("compress", path, "-o", small_path, *options)
        plan = read_plan(plan_path)
        assert plan.budget == "70% of latency, uniform"
        assert plan.cost.unit == "ms"
        assert 0 < plan.cost.after < plan.cost.before
        assert any(note.startswith("latency is the sum of the products") for note in plan.notes)
        slow = "would not be faster than the dense weight"
        assert all(site.reason == plan.budget or slow in site.reason for site in plan.sites)
        assert plan.parameters_after < plan.parameters_before
        open_session(small_path)
