"""What is decided on every site, and why."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import model, sites_of, weights
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from compress_onnx.graph_passes.allocation import ALLOCATORS, Candidate, get_allocator, round_rank
from compress_onnx.graph_passes.errors import NothingToCompressError, RequestError
from compress_onnx.graph_passes.factorization import ActivationStats
from compress_onnx.graph_passes.planning.plan import CompressionPlan, MethodSpec
from compress_onnx.graph_passes.planning.planner import make_plan, require_gain
from compress_onnx.graph_passes.planning.request import CompressionSpec, Selection
from compress_onnx.graph_passes.sites.find import SiteTable

SVD = MethodSpec(name="svd")


def table(**shapes: tuple[int, ...]) -> SiteTable:
    """Sites of products in parallel, each called by its weight."""
    nodes = " ".join(f"y_{name} = MatMul(x_{name}, {name})" for name in shapes)
    inputs = ", ".join(f"float[N,{shape[0]}] x_{name}" for name, shape in shapes.items())
    outputs = ", ".join(f"float[N,{shape[1]}] y_{name}" for name, shape in shapes.items())
    proto = model(f"g ({inputs}) => ({outputs}) {{ {nodes} }}", weights(**shapes))
    for node, name in zip(proto.graph.node, shapes, strict=True):
        node.name = f"/{name.replace('__', '/')}/MatMul"
    return sites_of(proto)


def seen(*names: str, features: int = 64) -> dict[str, ActivationStats]:
    """Statistics of white inputs."""
    zero = np.zeros(features)
    return {name: ActivationStats(100, zero, zero + 1, np.eye(features)) for name in names}


def plan(sites: SiteTable, **settings: object) -> CompressionPlan:
    return make_plan(sites, CompressionSpec.model_validate({"method": SVD, **settings}))


def decisions(made: CompressionPlan) -> dict[str, tuple[str, str]]:
    return {site.site: (site.decision, site.reason) for site in made.sites}


class TestBudget:
    @given(
        st.lists(st.tuples(st.integers(8, 300), st.integers(8, 300)), min_size=1, max_size=6),
        st.floats(0.05, 1),
        st.sampled_from([1, 8]),
    )
    def test_no_allocator_spends_more_than_the_share(
        self, shapes: list[tuple[int, int]], share: float, multiple: int
    ) -> None:
        candidates = [
            Candidate(str(i), k, n, damage=np.linspace(1, 0, min(k, n) + 1) ** 2)
            for i, (k, n) in enumerate(shapes)
        ]
        for name in ALLOCATORS:
            ranks = get_allocator(name)(candidates, share, multiple)
            assert ranks.keys() == {c.key for c in candidates}
            chosen = [(c, ranks[c.key]) for c in candidates]
            assert all(rank is None or 1 <= rank <= c.max_rank for c, rank in chosen)
            # A rank of one is the least there is, even where the share is worth less.
            least = sum(c.cost for c, rank in chosen if rank == 1)
            spent = sum(c.dense if rank is None else rank * c.cost for c, rank in chosen)
            assert spent <= share * sum(c.dense for c in candidates) + least

    def test_half_is_half(self) -> None:
        made = plan(table(a=(64, 64), b=(64, 128)), params=0.5, rank_multiple=1)
        assert made.parameters_before == 64 * 64 + 64 * 128
        assert 0.47 < made.parameters_after / made.parameters_before <= 0.5
        assert made.file_parameters_added == made.parameters_after - made.parameters_before

    def test_stack_costs_its_matrices(self) -> None:
        one, three = Candidate("w", 8, 6), Candidate("w", 8, 6, matrices=3)
        assert (three.cost, three.dense) == (3 * one.cost, 3 * one.dense)
        assert three.max_rank == one.max_rank

    @pytest.mark.parametrize(
        ("rank", "multiple", "limit", "expected"),
        [(7.9, 8, 64, 7), (8.0, 8, 64, 8), (23.9, 8, 64, 16), (0.2, 8, 64, 1), (90, 8, 60, 60)],
    )
    def test_rounding(self, rank: float, multiple: int, limit: int, expected: int) -> None:
        assert round_rank(rank, multiple, limit) == expected

    def test_rank_is_clipped_to_the_smaller_side(self) -> None:
        made = plan(table(a=(64, 16)), rank=500, allow_larger=True)
        assert made.sites[0].rank == 16
        assert made.allocation == "fixed rank"

    def test_factors_must_be_smaller(self) -> None:
        made = plan(table(a=(64, 64), b=(256, 256)), rank=32)
        assert decisions(made) == {
            "a": ("dense", "rank 32 would not be smaller than the dense weight"),
            "b": ("factor", "rank 32"),
        }
        assert made.sites[0].parameters_after == made.sites[0].parameters_before

    def test_unless_larger_ones_are_allowed(self) -> None:
        made = plan(table(a=(64, 64)), rank=64, allow_larger=True)
        assert made.sites[0].decision == "factor"
        assert made.file_parameters_added == 64 * 64


class TestSelection:
    SITES = table(enc__attn__q=(64, 64), enc__mlp__fc1=(64, 128), head=(64, 16))

    def test_by_group(self) -> None:
        made = plan(self.SITES, select=Selection(group="attention"))
        assert [site.decision for site in made.sites] == ["factor", "skip", "skip"]
        assert made.sites[1].reason == "not in the group attention"
        assert made.parameters_before == 64 * 64

    def test_by_pattern(self) -> None:
        made = plan(self.SITES, select=Selection(include=("enc.*",), exclude=("*.fc1",)))
        assert [(site.decision, site.reason) for site in made.sites][1:] == [
            ("skip", "excluded by '*.fc1'"),
            ("skip", "not included by any pattern"),
        ]

    def test_pattern_that_matches_nothing_is_refused(self) -> None:
        with pytest.raises(RequestError, match=r"'\*\.lm_head'.*did you mean 'head'\?"):
            plan(self.SITES, select=Selection(exclude=("*.lm_head",)))
        with pytest.raises(RequestError, match=r"'xyz'.*the first is 'enc\.attn\.q'"):
            plan(self.SITES, select=Selection(include=("xyz",)))

    def test_weight_shared_with_an_unselected_site_stays(self) -> None:
        proto = model(
            "g (float[N,64] x) => (float[N,64] y) { a = MatMul(x, w) y = MatMul(a, w) }",
            weights(w=(64, 64)),
        )
        for node, name in zip(proto.graph.node, "ab", strict=True):
            node.name = f"/{name}/MatMul"
        made = plan(sites_of(proto), select=Selection(include=("a",)))
        assert decisions(made) == {
            "a": ("dense", "shares its weight with b, which is not selected"),
            "b": ("skip", "not included by any pattern"),
        }


class TestMethods:
    def test_auto_is_what_the_data_allows(self) -> None:
        sites = table(a=(64, 64))
        assert make_plan(sites, CompressionSpec()).sites[0].method == MethodSpec(name="svd")
        made = make_plan(sites, CompressionSpec(), seen("a"))
        assert made.sites[0].method == MethodSpec(name="asvd")
        assert made.sites[0].bias_parameters == 64

    def test_asvd_without_data_is_refused(self) -> None:
        with pytest.raises(RequestError, match="calibration data, or use svd"):
            plan(table(a=(64, 64)), method=MethodSpec(name="asvd"))

    def test_matrices_of_a_stack_that_no_row_reached_are_named(self) -> None:
        proto = model(
            "g (float[3,N,64] x) => (float[3,N,64] y) { y = MatMul(x, w) }", weights(w=(3, 64, 64))
        )
        sites, asked = sites_of(proto), CompressionSpec(method=MethodSpec(name="asvd"))
        name = sites.sites[0].name
        made = make_plan(sites, asked, seen(f"{name}[0]", f"{name}[2]"))
        assert made.sites[0].decision == "factor"
        reason = "50% of parameters, uniform; svd for 1 of 3 matrices: no row for them"
        assert made.sites[0].reason == reason
        all_reached = make_plan(sites, asked, seen(*sites.sites[0].matrices))
        assert all_reached.sites[0].reason == "50% of parameters, uniform"
        made = make_plan(sites, asked, seen("another site"))
        assert decisions(made)[name] == (
            "dense",
            f"no activation statistics for {name}: use --method svd",
        )

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_weight_that_is_not_finite_stays(self, value: float) -> None:
        arrays = weights(w=(64, 64))
        arrays["w"][3, 5] = value
        proto = model("g (float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }", arrays)
        made = plan(sites_of(proto))
        assert made.sites[0].reason == "the weight has NaN or infinite values"

    def test_unknown_names_are_refused(self) -> None:
        with pytest.raises(RequestError, match="unknown method 'pca'"):
            plan(table(a=(64, 64)), method=MethodSpec(name="pca"))
        with pytest.raises(ValidationError, match="'auto', 'uniform', 'energy', 'sensitivity' or"):
            plan(table(a=(64, 64)), allocation="fair")


class TestRequest:
    @pytest.mark.parametrize(
        "settings_",
        [{"params": 0.5, "rank": 4}, {"params": 0}, {"params": 1.2}, {"rank": 0}, {"rnak": 3}],
    )
    def test_nonsense_is_refused(self, settings_: dict[str, object]) -> None:
        with pytest.raises(ValidationError):
            CompressionSpec.model_validate(settings_)


class TestGain:
    def test_a_plan_that_factors_nothing_is_refused_with_the_reason(self) -> None:
        with pytest.raises(NothingToCompressError, match="rank 2 would not be smaller"):
            require_gain(plan(table(a=(2, 2), b=(3, 2)), rank=2))

    def test_a_model_without_products(self) -> None:
        empty = sites_of(model("g (float[N] x) => (float[N] y) { y = Relu(x) }", {}))
        with pytest.raises(NothingToCompressError, match="no MatMul or Gemm"):
            require_gain(plan(empty))

    def test_a_plan_that_factors_something_passes(self) -> None:
        require_gain(plan(table(a=(64, 64))))
