"""The price of a weight in each kind of budget: what all sites that share it take together.

============  ===========================  =======================================================
budget        dense                        factors of rank r
============  ===========================  =======================================================
``params``    K·N                          r·(K + N)
``bytes``     s·K·N                        r·(t·(K + N) + v) + s·c, with s, t bytes a number of the
                                           weight and as stored, v of scales, c numbers of bias
``flops``     2·n·K·N                      2·n·r·(K + N), n rows of one inference
``latency``   measured                     measured
============  ===========================  =======================================================

The first two count each matrix of a stack, and a shared weight once; the others count what is
computed: a shared weight at each of its sites, a stack's matrices by the rows that each multiplies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from compress_onnx.graph_passes.allocation.price import LinearPrice, Price
from compress_onnx.graph_passes.factorization.storage import Storage, bytes_per_rank
from compress_onnx.graph_passes.sites.linear_site import LinearSite

PriceCurve = Callable[[Sequence[LinearSite]], Price | None]
"""The price of the weight that some sites share; None where it is not known."""


def byte_price(
    sites: Sequence[LinearSite], bias_parameters: Mapping[str, int], store: Storage = "same"
) -> LinearPrice:
    """Bytes in the file, which holds factors as ``store``.

    ``bias_parameters`` are what bias corrections add, by site name.
    """
    weight = sites[0].weight
    rows, columns = weight.shape
    return LinearPrice(
        dense=weight.itemsize * weight.matrices * rows * columns,
        per_rank=weight.matrices * bytes_per_rank(rows + columns, store, weight.itemsize),
        fixed=weight.itemsize * sum(bias_parameters.get(site.name, 0) for site in sites),
    )


def flop_price(sites: Sequence[LinearSite], rows: Mapping[str, int]) -> LinearPrice | None:
    """FLOPs of one inference; ``rows``: how many rows each site multiplies, by site name."""
    if any(site.name not in rows for site in sites):
        return None
    count = sum(rows[site.name] for site in sites)
    in_features, out_features = sites[0].weight.shape
    return LinearPrice(
        dense=2 * count * in_features * out_features,
        per_rank=2 * count * (in_features + out_features),
    )
