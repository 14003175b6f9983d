"""Folded attention against low rank: ``python -m studies.folded_attention``.

A head of width d multiplies two pairs of weights. With inputs x̃ = (x, 1), so that biases are rows
of W̃, ::

    scores   x̃ W̃_q (ỹ W̃_k)ᵀ = x̃ (W̃_q W̃_kᵀ) ỹᵀ            [K+1, K+1] of rank d
    values   x̃ W̃_v W_o                                      [K+1, N]   of rank d

Cut to rank r in the metric of the inputs' second moment M, each pair becomes a pair of width r, and
no node is added (CLOVER; for absolute positions). With S the square root of M,

    S (W̃_q W̃_kᵀ) Sᵀ ≈ U Σ Vᵀ        W̃_q' = S⁻¹ U Σ^½        W̃_k' = S⁻¹ V Σ^½

MiniLM's attention at 75 % and 50 % of its parameters, one shot, beside low rank of as many
parameters with uniform ranks and with ranks by damage. Here the folded weights are written back at
their full width, with zeros: the numbers of a narrower head, at no lower cost.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir
from scipy import linalg

from compress_onnx.graph_passes.arrays import Array, Float64
from compress_onnx.graph_passes.factorization import ActivationStats
from compress_onnx.graph_passes.factorization.gauss_newton import damped_half
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec, Selection
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.pipeline.compress.learn import Learned
from compress_onnx.pipeline.files.model_file import save_model
from compress_onnx.pipeline.measure.validate import validate
from compress_onnx.pipeline.recipes.single import ModelExperiment
from compress_onnx.pipeline.runtime.threads import limited
from studies.performance.subject import prepared

HEADS = 12
SHARES = 0.75, 0.5
_DAMPING = 1e-6
_OUTPUT_DAMPING = 0.02

Pair = tuple[Float64, Float64]


def second_moment(stats: ActivationStats) -> Float64:
    """``[K + 1, K + 1]`` of x̃ = (x, 1)."""
    moment = np.block(
        [[stats.second_moment, stats.mean[:, None]], [stats.mean[None, :], np.ones((1, 1))]]
    )
    damped: Float64 = moment + _DAMPING * np.trace(moment) / len(moment) * np.eye(len(moment))
    return damped


def fold_scores(query: Float64, key: Float64, moment: Float64, rank: int) -> Pair:
    """W̃_q' and W̃_k' ``[K + 1, r]`` of one head."""
    root = linalg.cholesky(moment)  # S with SᵀS = M
    left, values, right = linalg.svd(root @ query @ (root @ key).T, full_matrices=False)
    half = np.sqrt(values[:rank])
    return (
        linalg.solve_triangular(root, left[:, :rank] * half),
        linalg.solve_triangular(root, right[:rank].T * half),
    )


def fold_values(
    value: Float64, output: Float64, moment: Float64, gradients: Float64, rank: int
) -> Pair:
    """W̃_v' ``[K + 1, r]`` and W_o' ``[r, N]`` of one head, weighed by the outputs' gradients."""
    root, half = linalg.cholesky(moment), damped_half(gradients, _OUTPUT_DAMPING)
    left, values, right = linalg.svd(root @ value @ output @ half, full_matrices=False)
    roots = np.sqrt(values[:rank])
    return (
        linalg.solve_triangular(root, left[:, :rank] * roots),
        linalg.solve_triangular(half, (roots[:, None] * right[:rank]).T, lower=True, trans="T").T,
    )


def folded(learned: Learned, share: float) -> ir.Model:
    """The model with every head cut to ``share`` of its width."""
    model = learned.original.copy()
    basis = learned.basis(
        CompressionSpec(method=MethodSpec(name="gauss-newton"), objective="pooled")
    )
    sites = {site.name: site for site in find_sites(model).sites}
    for layer in sorted(
        {name.partition(".attention.")[0] for name in sites if "attention" in name}
    ):
        names = [f"{layer}.attention.{part}" for part in _PARTS]
        query, key, value, output = (sites[name] for name in names)
        moment = second_moment(basis.stats[names[0]])
        gradients = basis.stats[names[3]].gradients
        assert gradients is not None
        parts = [_augmented(site) for site in (query, key, value)]
        out = output.weight.array().astype(np.float64)
        new, new_out = [np.zeros_like(part) for part in parts], np.zeros_like(out)
        width = out.shape[0] // HEADS
        rank = round(share * width)
        for head in range(HEADS):
            at, kept = (
                slice(head * width, (head + 1) * width),
                slice(head * width, head * width + rank),
            )
            scores = fold_scores(parts[0][:, at], parts[1][:, at], moment, rank)
            new[0][:, kept], new[1][:, kept] = scores
            pair = fold_values(parts[2][:, at], out[at], moment, gradients.moment, rank)
            new[2][:, kept], new_out[kept] = pair
        for site, numbers in zip((query, key, value), new, strict=True):
            _set(site, numbers[:-1], numbers[-1])
        _set(output, new_out, None)
    return model


_PARTS = "self.query", "self.key", "self.value", "output.dense"


def _augmented(site: LinearSite) -> Float64:
    assert site.bias is not None
    assert site.bias.value.const_value is not None
    bias = site.bias.value.const_value.numpy().reshape(1, -1)
    stacked: Float64 = np.vstack([site.weight.array(), bias]).astype(np.float64)
    return stacked


def _set(site: LinearSite, weight: Array, bias: Array | None) -> None:
    owner = site.weight.initializer
    owner.const_value = ir.tensor(weight.astype(np.float32), name=owner.name)
    if bias is not None and site.bias is not None:
        value = site.bias.value
        value.const_value = ir.tensor(bias.astype(np.float32), name=value.name)


def low_rank(learned: Learned, share: float, allocation: str) -> ir.Model:
    """The model with attention of low rank."""
    request = CompressionSpec.model_validate(
        {
            "method": {"name": "gauss-newton"},
            "params": share,
            "allocation": allocation,
            "sequential": False,
            "objective": "pooled",
            "select": Selection(group="attention"),
        }
    )
    return learned.compress(request).model


def lines(minilm: ModelExperiment, folder: Path) -> Iterator[str]:
    """The table."""
    learned, held_out = minilm.learned, minilm.held_out
    assert held_out is not None
    yield "| attention at | folded heads | low rank, uniform | low rank, by damage |"
    yield "|:---|---:|---:|---:|"
    for share in SHARES:
        models = (
            folded(learned, share),
            low_rank(learned, share, "uniform"),
            low_rank(learned, share, "gauss-newton"),
        )
        cells = []
        for model in models:
            path = folder / "model.onnx"
            save_model(model, path)
            report = validate(learned.original.path, path, held_out, metric=minilm.recipe.metric)
            cells.append(f"{report.metrics['cosine']:.4f}")
        yield f"| {share:.0%} | {' | '.join(cells)} |"


def main() -> None:
    """Measure, and print the table."""
    logging.basicConfig(level=logging.WARNING, force=True)
    with TemporaryDirectory() as name, limited():
        folder = Path(name)
        (folder / "export").mkdir()
        for line in lines(prepared(folder / "export"), folder):
            sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
