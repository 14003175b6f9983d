"""The moments of the gradients at the outputs of a compressed model's layers.

Gradients are taken once, of the original. With G the moment at the output of a site:

===================================  =====================================================
a layer that stays                   G
an up layer with neurons S left      G[S, S]
a chain ``(x·A)·B``                  B G Bᵀ behind A, G behind B
===================================  =====================================================
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from compress_onnx.graph_passes.arrays import Float64
from compress_onnx.graph_passes.factorization import GradientStats
from compress_onnx.graph_passes.rewriting.low_rank import DOWN, UP
from compress_onnx.graph_passes.sites.ffn import find_ffns
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.pipeline.compress.compressed import Compressed
from compress_onnx.pipeline.files.original import Original


def output_moments(
    model: ir.Model | Original, compressed: Compressed, gradients: Mapping[str, GradientStats]
) -> dict[str, Float64]:
    """``[N, N]`` by the name of the node; layers of which nothing is known have none.

    Args:
        model: what ``compressed`` makes of the original, factors as layers of their own.
        compressed: the plan.
        gradients: of the original's sites, by name.
    """
    sites = compressed.basis.original.table.sites
    found = {
        str(site.node.name): gradients[site.name].moment for site in sites if site.name in gradients
    }
    if isinstance(model, Original):
        return found
    networks = {ffn.name: ffn for ffn in find_ffns(sites).ffns}
    for name, kept in compressed.kept_neurons().items():
        for up in networks[name].ups:
            node = str(up.node.name)
            if node in found:
                found[node] = found[node][np.ix_(kept, kept)]
    for site in find_sites(model).sites:
        node, chain, another = str(site.node.name).partition(UP)
        if chain and not another and node in found:
            factor = site.alpha * site.weight.array().astype(np.float64)  # [r, N]
            found[f"{node}{UP}"] = found[node]
            found[f"{node}{DOWN}"] = factor @ found[node] @ factor.T
    return found
