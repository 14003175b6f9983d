"""Our own methods, as the command line runs them with ``--siblings never``."""

from __future__ import annotations

from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.strategy import AUTO
from compress_onnx.pipeline.compress.compressed import Compressed
from compress_onnx.pipeline.compress.learn import Learned
from studies.peers.contestant import Compressor, Contestant
from studies.peers.laboratory import Laboratory


def _learn(laboratory: Laboratory, learned: Learned, method: str) -> Compressor:
    request = laboratory.base.model_copy(update={"method": MethodSpec(name=method)})
    learned.basis(request)  # what it collects is kept from now on

    def compress(share: float) -> Compressed:
        return learned.compress(request.model_copy(update={"params": share}))

    return compress


OURS = (
    Contestant(
        "svd",
        ours=True,
        source="truncated SVD of the weights, uniform ranks: also the plainest of the peers",
        activations=False,
        learn=lambda laboratory: _learn(laboratory, laboratory.weights_alone, "svd"),
    ),
    Contestant(
        "asvd",
        ours=True,
        source="exact and centred, with the bias corrected, uniform ranks",
        activations=True,
        learn=lambda laboratory: _learn(laboratory, laboratory.learned, "asvd"),
    ),
    Contestant(
        "auto",
        ours=True,
        source="gauss-newton, ranks by predicted damage, sequential repair; the default",
        activations=True,
        learn=lambda laboratory: _learn(laboratory, laboratory.learned, AUTO),
    ),
)
