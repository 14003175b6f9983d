"""What a model's weights take of a budget that has to be looked at: FLOPs, and latency.

Both are those of one inference. Its size is, in this order,

1. the batch and the length of the benchmark, where the recipe has one;
2. one sample of median length, where there are samples;
3. the benchmark's defaults.

The model runs once to see how many rows each site really multiplies: a pooled head one, a layer of
tokens as many as there are tokens. Nothing is known about sites in the body of an If, Loop or Scan.
Latency is measured on the benchmark's provider with its threads (``auto`` is the CPU, which is
everywhere), for each product of another size once, and summed over the sites that share a weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from compress_onnx.graph_passes.allocation.price import TabulatedPrice
from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.planning import ffns
from compress_onnx.graph_passes.planning.ffns import NeuronPrice
from compress_onnx.graph_passes.planning.prices import PriceCurve, flop_price
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.sites.ffn import FFN
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.original import Original
from compress_onnx.pipeline.measure.latency import benchmark_feeds
from compress_onnx.pipeline.measure.product_times import Product, ranks_to_measure, time_product
from compress_onnx.pipeline.recipe import BenchmarkSpec
from compress_onnx.pipeline.runtime.protobuf import OUTSIDE, serialized
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run

_OTHER_LENGTHS = (512, 64, 48, 32, 16)
"""Of speech, text lines and images, where a model does not run at the usual one."""

_NEURON_POINTS = 12
"""How many numbers of neurons are measured."""


class Prices(NamedTuple):
    """What weights take of a budget, and how that was found out."""

    curve: PriceCurve
    networks: NeuronPrice
    note: str


class Meter:
    """Finds out what the weights of one model take; nothing is counted or timed twice.

    Args:
        original: the model as it was.
        benchmark: how latency is measured; None where nobody said.
        samples: rows to feed; None without data.
        settings: how the model is run; its seed is that of made-up inputs.
    """

    def __init__(
        self,
        original: Original,
        benchmark: BenchmarkSpec | None = None,
        *,
        samples: Samples | None = None,
        settings: RunSettings | None = None,
    ) -> None:
        self._original = original
        self._benchmark = benchmark or BenchmarkSpec(length=_median_length(samples))
        self._samples = samples
        self._settings = settings or RunSettings()
        self._rows: Mapping[str, int] | None = None
        self._timed: dict[tuple[Product, tuple[int, ...]], TabulatedPrice] = {}

    def prices(self, request: CompressionSpec) -> Prices | None:
        """What weights take of the budget of ``request``; None where nobody has to look.

        Raises:
            DataError: no inputs can be made up for the model, or the samples do not fit it.
        """
        if request.rank is not None or request.budget not in {"flops", "latency"}:
            return None
        feeds = self.feeds()
        if self._rows is None:
            self._rows = count_rows(self._original, feeds)
        shapes = (f"{name} {'x'.join(map(str, array.shape))}" for name, array in feeds.items())
        inputs = f"for inputs {', '.join(shapes)}"
        if request.budget == "flops":
            return Prices(
                partial(flop_price, rows=self._rows),
                partial(ffns.flop_price, rows=self._rows),
                f"FLOPs are those {inputs}",
            )
        return Prices(
            partial(self._latency, rows=self._rows, multiple=request.rank_multiple),
            partial(self._network_latency, rows=self._rows, multiple=request.rank_multiple),
            f"latency is the sum of the products, each measured alone on {self._spec.provider} "
            f"with {self._spec.thread_count} threads, {inputs}",
        )

    @property
    def _spec(self) -> SessionSpec:
        return SessionSpec(provider=self._benchmark.device, threads=self._benchmark.threads)

    def feeds(self) -> dict[str, Array]:
        """The inputs of one inference.

        Raises:
            DataError: no inputs can be made up for the model, or the samples do not fit it.
        """
        return self._feeds(self._benchmark)

    def feeds_at_several_sizes(self) -> Iterator[dict[str, Array]]:
        """:meth:`feeds`, then made-up inputs of other lengths, for models that take not any length.

        Raises:
            DataError: as for :meth:`feeds`.
        """
        yield self.feeds()
        if self._samples is None:
            for length in _OTHER_LENGTHS:
                yield self._feeds(self._benchmark.model_copy(update={"length": (length,)}))

    def _feeds(self, benchmark: BenchmarkSpec) -> dict[str, Array]:
        return benchmark_feeds(
            self._original.path, benchmark, samples=self._samples, seed=self._settings.seed
        )

    def _latency(
        self, sites: Sequence[LinearSite], rows: Mapping[str, int], multiple: int
    ) -> TabulatedPrice | None:
        """Milliseconds of one inference in all ``sites``, which share a weight."""
        if any(site.name not in rows for site in sites):
            return None
        timed = [self._time(product_of(site, rows[site.name]), multiple) for site in sites]
        return TabulatedPrice(
            sum(price.dense for price in timed),
            timed[0].ranks,
            tuple(map(sum, zip(*(price.prices for price in timed), strict=True))),
        )

    def _network_latency(
        self, ffn: FFN, rows: Mapping[str, int], multiple: int
    ) -> TabulatedPrice | None:
        """Milliseconds with so many neurons left: a chain through them is a product of that rank.

        The up layers of a gated network count as one of their summed width.
        """
        if any(site.name not in rows for site in ffn.sites):
            return None
        down = product_of(ffn.down, rows[ffn.down.name])
        chain = replace(down, in_features=sum(up.in_features for up in ffn.ups))
        grid = np.linspace(multiple, ffn.neurons, _NEURON_POINTS) // multiple * multiple
        counts = tuple(int(count) for count in np.unique(np.append(grid, ffn.neurons)) if count)
        if (chain, counts) not in self._timed:
            with self._settings.progress.step(f"time {ffn.neurons} neurons"):
                timed = time_product(chain, counts, self._spec)
            self._timed[chain, counts] = replace(timed, dense=timed.prices[-1])
        return self._timed[chain, counts]

    def _time(self, product: Product, multiple: int) -> TabulatedPrice:
        ranks = ranks_to_measure(product.in_features, product.out_features, multiple)
        key = product, ranks
        if key not in self._timed:
            step = f"time {product.in_features}x{product.out_features}"
            with self._settings.progress.step(step):
                self._timed[key] = time_product(product, ranks, self._spec)
        return self._timed[key]


def product_of(site: LinearSite, rows: int) -> Product:
    """The product that ``site`` computes on ``rows`` rows; a stack's go to its matrices evenly."""
    weight = site.weight
    dtype = weight.initializer.dtype
    assert dtype is not None
    return Product(weight.matrices, math.ceil(rows / weight.matrices), *weight.shape, dtype)


def count_rows(original: Original, feeds: Mapping[str, Array]) -> dict[str, int]:
    """How many rows each site multiplies in one run on ``feeds``, by site name.

    That is what its output has of ``out_features`` numbers, whichever way round it is, and whether
    or not the input was broadcast over a stack of matrices.

    Raises:
        ModelFileError: the model cannot be run.
    """
    values = {s.name: s.node.outputs[0].name or "" for s in original.table.sites if not s.nested}
    proto = ir.to_proto(original.model)
    for value in values.values():
        shape = _shape_name(value)
        proto.graph.node.append(onnx.helper.make_node("Shape", [value], [shape]))
        proto.graph.output.append(
            onnx.helper.make_tensor_value_info(shape, onnx.TensorProto.INT64, [None])
        )
    session = open_session(serialized(proto, instead=OUTSIDE), data_folder=original.data_folder)
    shapes = run(session, feeds, [_shape_name(value) for value in values.values()])
    features = {site.name: site.out_features for site in original.table.sites}
    return {
        site: int(np.prod(shapes[_shape_name(value)])) // features[site]
        for site, value in values.items()
    }


def _shape_name(value: str) -> str:
    return f"{value}.shape"


def _median_length(samples: Samples | None) -> int:
    if samples is None or samples.mask_name is None:
        return BenchmarkSpec().length[0]
    lengths = samples.inputs[samples.mask_name].astype(bool).sum(axis=1)
    return max(1, int(np.median(lengths)))
