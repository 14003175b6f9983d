"""Our own methods, as the command line runs them with ``--siblings never``."""

from __future__ import annotations

from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.strategy import AUTO, concrete
from compress_onnx.pipeline.compress.study import goes_by_gradients, plan_study
from compress_onnx.pipeline.compress.subject import plan_subject
from studies.peers.contestant import Compressor, Contestant, Outcome
from studies.peers.laboratory import Laboratory


def _learn_svd(laboratory: Laboratory) -> Compressor:
    def compress(share: float) -> Outcome:
        changes = {"method": MethodSpec(name="svd"), "params": share}
        request = laboratory.base.model_copy(update=changes)
        return Outcome(plan_subject(laboratory.subject, concrete(request, "none"), None))

    return compress


def _learn(laboratory: Laboratory, method: str) -> Compressor:
    request = laboratory.base.model_copy(update={"method": MethodSpec(name=method)})
    researcher = laboratory.researcher
    if goes_by_gradients(concrete(request, "gradients")):
        researcher.differentiate(laboratory.objective)  # from the cache from now on

    def compress(share: float) -> Outcome:
        study = researcher.study(request.model_copy(update={"params": share}))
        plan = plan_study(laboratory.subject, study)
        return Outcome(plan, researcher.factor(plan, study), study.calibration)

    return compress


OURS = (
    Contestant(
        "svd",
        ours=True,
        source="truncated SVD of the weights, uniform ranks: also the plainest of the peers",
        activations=False,
        learn=_learn_svd,
    ),
    Contestant(
        "asvd",
        ours=True,
        source="exact and centred, with the bias corrected, uniform ranks",
        activations=True,
        learn=lambda laboratory: _learn(laboratory, "asvd"),
    ),
    Contestant(
        "auto",
        ours=True,
        source="gauss-newton, ranks by predicted damage, sequential repair; the default",
        activations=True,
        learn=lambda laboratory: _learn(laboratory, AUTO),
    ),
)
