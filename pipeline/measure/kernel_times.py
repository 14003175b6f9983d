"""Where a model's time goes, from ONNX Runtime's own profiler.

Let s_i be the part of the reference's kernel time that site i takes, and ρ_i = r(K+N)/(K·N) what
its factors cost of its FLOPs. If time scaled with FLOPs, the model would take 1 − Σ s_i(1 − ρ_i)
of its time: one over that is the ideal speed-up.

ONNX Runtime renames the nodes that it fuses, always around the name of the MatMul or Gemm:
``X/MatMulAddFusion``, ``X/MatMulScaleFusion/``, ``X/MatmulTransposeFusion/``, ``fused X``,
``fused X/MatMulAddFusion``. To find the original node of a kernel, the prefix and then the parts
after the last slashes are taken off. The kernel has to be a MatMul or Gemm of some kind. A node may
not be found: ``Attention`` took it in, or it was merged with an equal one. The ideal speed-up is
then unknown, and a note says why.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

from compress_onnx.pipeline.runtime.inputs import load_structure
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run

_KERNEL_SUFFIX = "_kernel_time"
_FUSED_PREFIX = "fused "


class KernelTime(NamedTuple):
    """Time that one kernel took in one run, without the kernels of its subgraphs."""

    name: str
    op_type: str
    time_us: int


class LinearShares(NamedTuple):
    """Shares of the total kernel time by node name; None, with a note that says why, if unknown."""

    by_node: dict[str, float] | None
    note: str | None = None


def linear_shares(
    model: Path,
    feeds: Mapping[str, np.ndarray],
    spec: SessionSpec,
    node_names: Sequence[str],
    runs: int,
) -> LinearShares:
    """Profile ``model`` and tell how much of its time each of ``node_names`` takes.

    A share includes what ONNX Runtime fused into the node's kernel (its bias, its activation).

    Args:
        model: the reference.
        feeds: one array for each input.
        spec: must be what the model is measured with.
        node_names: MatMul or Gemm nodes of the model, by their original names.
        runs: how many runs to add up, after one that is left out.

    Raises:
        ProviderError, ModelFileError: the session cannot be opened or run.
    """
    if spec.provider != "cpu":
        return LinearShares(None, "ONNX Runtime's profiler times kernel launches, not the GPU")
    original = Counter(node.name for node in all_nodes(load_structure(model).graph))
    return attribute(profile(model, feeds, spec, runs), original, node_names)


def attribute(
    kernels: Sequence[KernelTime], original: Counter[str], node_names: Sequence[str]
) -> LinearShares:
    """Assign kernels to the nodes that they were made from.

    Args:
        kernels: what ran.
        original: the names of all nodes of the model as written, with their counts.
        node_names: the nodes of interest.
    """
    times: dict[str, int] = {}
    for kernel in kernels:
        node = origin(kernel.name, original) if _is_linear(kernel.op_type) else None
        if node is not None:
            times[node] = times.get(node, 0) + kernel.time_us
    lost = [name for name in node_names if name not in times or original[name] != 1]
    total = sum(kernel.time_us for kernel in kernels)
    if lost or not total:
        return LinearShares(
            None,
            f"{len(lost)} of {len(node_names)} factored nodes cannot be told apart in ONNX "
            f"Runtime's profile (fused, merged, or not uniquely named), first {lost[:1]}",
        )
    return LinearShares({name: times[name] / total for name in node_names})


def origin(kernel: str, original: Collection[str]) -> str | None:
    """The name of the original node that ``kernel`` was made from; None if there is none."""
    name = kernel
    while name and name not in original:
        if name.startswith(_FUSED_PREFIX):
            name = name.removeprefix(_FUSED_PREFIX)
        else:
            name = name.rpartition("/")[0]
    return name or None


def _is_linear(op_type: str) -> bool:
    return "MatMul" in op_type or "Gemm" in op_type


def ideal_speedup(shares: Mapping[str, float], cost_ratios: Mapping[str, float]) -> float:
    """The speed-up if each site's time scaled with its FLOPs.

    Args:
        shares: part of the reference's time by node name.
        cost_ratios: FLOPs after over FLOPs before, r(K+N)/(K·N), by node name.
    """
    return 1 / (1 - sum(shares[name] * (1 - ratio) for name, ratio in cost_ratios.items()))


def layer_times_ms(
    model: Path,
    feeds: Mapping[str, np.ndarray],
    spec: SessionSpec,
    layers: Collection[str],
    runs: int = 20,
) -> dict[str, float]:
    """How long the product of each layer takes in one run, with what is fused into it.

    Args:
        model: the layers' products are named after them: ``X``, or ``X.`` and more.
        feeds: one array for each input.
        spec: how it is run.
        layers: names of nodes; those that cannot be told apart in the profile have no time.
        runs: the median of so many counts.

    Raises:
        ProviderError, ModelFileError: the session cannot be opened or run.
    """
    if spec.provider != "cpu":
        return {}
    taken: dict[str, list[int]] = {}
    for kernel in profile(model, feeds, spec, runs):
        if _is_linear(kernel.op_type):
            taken.setdefault(kernel.name, []).append(kernel.time_us)
    found: dict[str, float] = {}
    for kernel_name, times_us in taken.items():
        name = kernel_name.removeprefix(_FUSED_PREFIX)
        owners = [n for n in layers if name == n or name.startswith((f"{n}.", f"{n}/"))]
        if owners:
            owner = max(owners, key=len)
            median_us = float(np.median(times_us)) * len(times_us) / runs
            found[owner] = found.get(owner, 0.0) + median_us / 1000
    return found


def executed_op_counts(model: Path, spec: SessionSpec) -> dict[str, int]:
    """Count the operators that ONNX Runtime really runs, after its own fusions.

    Subgraphs are included; operators outside the standard domain carry their domain
    (``com.microsoft.BiasGelu``).

    Raises:
        ProviderError, ModelFileError: the session cannot be opened.
    """
    with tempfile.TemporaryDirectory(prefix="compress-onnx-") as folder:
        path = Path(folder) / "optimized.onnx"
        open_session(model, spec, optimized_path=path)
        nodes = all_nodes(load_structure(path).graph)
        return dict(sorted(Counter(_qualified(node) for node in nodes).items()))


def _qualified(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of ``graph`` and of its subgraphs."""
    for node in graph.node:
        yield node
        for attribute_ in node.attribute:
            for subgraph in (attribute_.g, *attribute_.graphs):
                yield from all_nodes(subgraph)


def profile(
    model: Path | bytes,
    feeds: Mapping[str, np.ndarray],
    spec: SessionSpec,
    runs: int,
    *,
    data_folder: Path | None = None,
    limit_s: float = math.inf,
) -> list[KernelTime]:
    """The kernels of ``runs`` runs, after one that is left out.

    Args:
        model: a path, or a serialized model.
        feeds: one array for each input.
        spec: how it is run.
        runs: at most so many; at least one.
        data_folder: where the external data of a serialized model lies.
        limit_s: no further run starts after so many seconds of running.

    Raises:
        ProviderError, ModelFileError: the session cannot be opened or run.
    """
    with tempfile.TemporaryDirectory(prefix="compress-onnx-") as folder:
        session = open_session(
            model,
            spec,
            data_folder=data_folder,
            spinning=True,
            profile_prefix=Path(folder) / "profile",
        )
        try:
            run(session, feeds)
            end = time.monotonic() + limit_s
            for done in range(runs):
                if done and time.monotonic() > end:
                    break
                run(session, feeds)
        finally:
            written = Path(session.end_profiling())
        return kernel_times(json.loads(written.read_bytes()))


def kernel_times(events: Sequence[Mapping[str, Any]]) -> list[KernelTime]:
    """Kernel times from profile events, without those of the first run, which warms up.

    A control-flow kernel spans those of its subgraph: what lies inside it is taken off its time.
    """
    start = min((_end(e) for e in events if e["name"] == "model_run"), default=0)
    kernels = [e for e in events if e["name"].endswith(_KERNEL_SUFFIX) and e["ts"] >= start]
    kernels.sort(key=lambda e: (e["ts"], -e["dur"]))
    own = [int(e["dur"]) for e in kernels]
    enclosing: list[int] = []
    for index, event in enumerate(kernels):
        while enclosing and _end(kernels[enclosing[-1]]) <= event["ts"]:
            enclosing.pop()
        if enclosing:
            own[enclosing[-1]] -= int(event["dur"])
        enclosing.append(index)
    return [
        KernelTime(e["name"].removesuffix(_KERNEL_SUFFIX), e["args"]["op_name"], max(time_us, 0))
        for e, time_us in zip(kernels, own, strict=True)
    ]


def _end(event: Mapping[str, Any]) -> int:
    return int(event["ts"]) + int(event["dur"])
