"""Is it worth compressing this model at all? An upper bound, and a verdict in words.

Let s be the share of the time in linear layers, the only ones that are changed. If they took no
time at all the model would be 1 / (1 − s) times as fast (Amdahl), and 1 / (1 − s/2) times if they
took half of it; so does the file shrink with the share of the bytes. The verdict goes by the larger
of both shares:

    s >= 20 %   worth it: at half, a gain of at least 1.11
    s >= 4 %    hardly: at half, at least 1.02, which is the least that counts as one
    below       not worth it
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.pipeline.files.original import Original
from compress_onnx.pipeline.measure.kind_shares import TimeShares, bytes_by_kind, times_by_kind
from compress_onnx.pipeline.measure.latency import first_that_runs
from compress_onnx.pipeline.measure.operator_kinds import KINDS, LABELS, Kind
from compress_onnx.pipeline.results import KindShare, Potential
from compress_onnx.pipeline.runtime.session import SessionSpec

WORTH, HARDLY = 0.20, 0.04
"""Least shares in linear layers for these verdicts."""

_NOT_ON_A_GPU = "time was not measured: ONNX Runtime's profiler times kernel launches, not the GPU"

Grade = Literal["yes", "hardly", "no"]


def measure_potential(
    original: Original, feeds: Iterable[Mapping[str, Array]] | None, spec: SessionSpec
) -> Potential:
    """Look at the weights of ``original``, and profile it.

    A model that does not run has a verdict too, by its bytes: the reason is in the notes.

    Args:
        original: the model.
        feeds: its inputs, at several sizes: the first at which it runs counts; None leaves time
            out.
        spec: how it is run, on the CPU.
    """
    weight_bytes = bytes_by_kind(original)
    if feeds is None:
        return potential_of(weight_bytes, None)
    if spec.provider != "cpu":
        return potential_of(weight_bytes, None, notes=[_NOT_ON_A_GPU])
    timed = first_that_runs(feeds, lambda inputs: times_by_kind(original, inputs, spec))
    if isinstance(timed, str):
        notes = [f"time was not measured: {timed} (--calibration brings real inputs)"]
        return potential_of(weight_bytes, None, notes=notes)
    inputs, times = timed
    shapes = (f"{name} {'x'.join(map(str, a.shape)) or 'scalar'}" for name, a in inputs.items())
    return potential_of(weight_bytes, times, inputs=", ".join(shapes))


def potential_of(
    weight_bytes: Mapping[Kind, int],
    times: TimeShares | None,
    *,
    inputs: str = "",
    notes: Sequence[str] = (),
) -> Potential:
    """What the figures say.

    Args:
        weight_bytes: by kind.
        times: None where time was not measured.
        inputs: what it was measured at.
        notes: what a reader must know.
    """
    total = sum(weight_bytes.values()) or 1
    by_time: Mapping[Kind, float] = {} if times is None else times.by_kind
    kinds = [
        KindShare(
            kind=kind,
            weight_bytes=weight_bytes.get(kind, 0),
            share_of_bytes=weight_bytes.get(kind, 0) / total,
            share_of_time=None if times is None else by_time.get(kind, 0.0),
        )
        for kind in KINDS
        if weight_bytes.get(kind) or by_time.get(kind)
    ]
    kinds.sort(key=lambda row: (-(row.share_of_time or 0), -row.share_of_bytes))
    worth, verdict = judge(kinds)
    share = by_time.get("linear", 0.0)
    if times is not None and times.lost_sites:
        notes = [
            *notes,
            f"{times.lost_sites} linear layers have no kernel of their own in ONNX Runtime's "
            "profile (fused into attention, merged, or in a branch that did not run): their time "
            "is counted elsewhere",
        ]
    return Potential(
        kinds=tuple(kinds),
        inputs=inputs,
        speedup_bound=None if times is None else _speedup(share),
        speedup_at_half=None if times is None else _speedup(share / 2),
        worth=worth,
        verdict=verdict,
        notes=tuple(notes),
    )


def judge(kinds: Sequence[KindShare]) -> tuple[Grade, str]:
    """The verdict on a model whose operators take these shares."""
    linear = next((row for row in kinds if row.kind == "linear"), None)
    timed = any(row.share_of_time is not None for row in kinds)
    elsewhere = _elsewhere(kinds, timed)
    if linear is None:
        return "no", f"not worth it: there are no linear layers to change; {elsewhere}"
    where = f"{linear.share_of_bytes:.0%} of the weights' bytes are in linear layers"
    if timed:
        where = f"{linear.share_of_time:.0%} of the time and {where}"
    by_bytes, by_time = _grade(linear.share_of_bytes), _grade(linear.share_of_time or 0)
    if "yes" not in {by_bytes, by_time}:
        hardly = "hardly" in {by_bytes, by_time}
        start = "hardly" if hardly else "not"
        return "hardly" if hardly else "no", f"{start} worth it: {elsewhere}; only {where}"
    if by_bytes == by_time:
        return "yes", f"worth it: {where}, which can be changed"
    if by_time == "yes":
        return "yes", f"worth it for its speed alone: {where}; {_elsewhere(kinds, timed=False)}"
    if timed:
        return "yes", f"worth it for its size alone: {where}; {elsewhere}"
    return "yes", f"worth it for its size: {where}, which can be changed; time is not known"


def _speedup(saved: float) -> float:
    """What saving this share of the time gains."""
    return 1 / (1 - saved) if saved < 1 else math.inf


def _grade(share: float) -> Grade:
    if share >= WORTH:
        return "yes"
    return "hardly" if share >= HARDLY else "no"


def _elsewhere(kinds: Sequence[KindShare], timed: bool) -> str:
    """The kinds other than linear layers that take most of the time, or of the bytes."""

    def share(row: KindShare) -> float:
        return (row.share_of_time or 0.0) if timed else row.share_of_bytes

    others = sorted((r for r in kinds if r.kind != "linear"), key=share, reverse=True)
    if not others:
        return "it has no weights"
    most, *rest = others
    what = "the time is" if timed else "the weights' bytes are"
    text = f"{share(most):.0%} of {what} in {LABELS[most.kind]}"
    if rest and share(rest[0]) >= WORTH:
        text += f" and {share(rest[0]):.0%} in {LABELS[rest[0].kind]}"
    return f"{text}, which this tool does not change"
