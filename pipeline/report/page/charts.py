"""The pictures of a page, as Vega-Lite specifications with their data.

Colours come from the page's theme: a specification names categories only, in their order. A chart
is as wide as the page lets it be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compress_onnx.graph_passes.planning.plan import CompressionPlan
from compress_onnx.pipeline.compress.spectra import SiteSpectrum
from compress_onnx.pipeline.recipe import MAIN_SET
from compress_onnx.pipeline.report import formats
from compress_onnx.pipeline.report.markdown import printable
from compress_onnx.pipeline.report.page.blocks import Chart, Column, Table
from compress_onnx.pipeline.results import (
    Benchmark,
    DepthError,
    DepthProfile,
    InnerComparison,
    LatencyStats,
    OptimizeReport,
    SweepReport,
    ValidationReport,
)

Row = Mapping[str, str | float | None]
Spec = dict[str, Any]

_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
_BEFORE, _AFTER = "original", "compressed"
_RANKS = 32
"""At most so many ranks of a site are drawn: a model may have hundreds of sites."""

_TICKS = (0, 0.25, 0.5, 0.75, 1, 2, 5, 10, 20, 50, 100)
"""Of a drop, in multiples of what may be lost: linear up to there, logarithmic beyond."""

_LEAST_ERROR = 1e-9
"""What is drawn of an error of zero, on a logarithmic axis."""

_ROUNDED = 1e-6
"""What rounding to float32 makes of a value."""


def latency_chart(benchmark: Benchmark) -> Chart:
    """The share of inferences that took no longer than so many milliseconds, of both models."""
    models = {_BEFORE: benchmark.reference, _AFTER: benchmark.candidate}
    rows: list[Row] = [
        {"model": model, "ms": ms, "share": share}
        for model, stats in models.items()
        for share, ms in _quantiles(stats)
    ]
    shown = ("model", "ms", "share")
    line = _mark("line", "ms", "share", interpolate="step-after")
    line["encoding"] |= {"color": _colour("model", list(models)), "tooltip": _tooltip(shown)}
    line["encoding"]["x"] |= _axis("milliseconds, of one inference")
    line["encoding"]["y"] |= _axis("share of the runs", format="%")
    table = Table(
        f"Milliseconds by share of the runs, {benchmark.name}",
        [
            Column("share of the runs", _percent),
            *(Column(name, formats.milliseconds) for name in models),
        ],
        [
            (share, ms, other)
            for (share, ms), (_, other) in zip(
                _quantiles(benchmark.reference), _quantiles(benchmark.candidate), strict=True
            )
        ],
    )
    return Chart(
        f"Latency on {benchmark.name}",
        "The further left a curve, the faster the model; the higher up it bends, the fewer runs "
        "are slow.",
        _chart(rows, [line]),
        table,
    )


def score_chart(validation: ValidationReport, score: str) -> Chart | None:
    """How a score is spread over samples, set by set; None where samples have none."""
    sets = {MAIN_SET: validation, **validation.domains}
    shares = np.linspace(0, 1, 41)
    found = {
        name: np.quantile(each.per_sample[score], shares)
        for name, each in sets.items()
        if each.per_sample.get(score) and np.isfinite(each.per_sample[score]).all()
    }
    if not found:
        return None
    rows: list[Row] = [
        {"samples": printable(name), score: float(value), "share": float(share)}
        for name, values in found.items()
        for share, value in zip(shares, values, strict=True)
    ]
    line = _mark("line", score, "share", interpolate="step-after")
    names = [printable(name) for name in found]
    line["encoding"] |= {"color": _colour("samples", names)}
    line["encoding"]["tooltip"] = _tooltip(("samples", score, "share"))
    line["encoding"]["x"] |= _axis(f"{score} of a sample")
    line["encoding"]["y"] |= _axis("share of the samples below", format="%")
    table = Table(
        f"{score} by share of the samples",
        [
            Column("share of the samples", _percent),
            *(Column(n, formats.significant) for n in names),
        ],
        [
            (float(share), *(float(found[name][place]) for name in found))
            for place, share in enumerate(shares)
        ],
    )
    return Chart(
        f"{score}, sample by sample",
        "The further right a curve, the closer the answers are to the original's; its left end "
        "are the samples that lose most.",
        _chart(rows, [line]),
        table,
    )


def front_chart(report: OptimizeReport) -> Chart:
    """Every trial: what it loses against how fast, or how small, it is; rivals among them."""
    height = "speed-up" if report.objective == "latency" else "megabytes"
    rows: list[Row] = []
    for trial in report.trials:
        value = trial.speedup if report.objective == "latency" else _megabytes(trial.size_bytes)
        if trial.drop is None or value is None or not math.isfinite(trial.drop.value):
            continue
        kind = "without this tool" if trial.rival else "ours"
        rows.append(
            {
                "trial": printable(trial.name),
                "kind": "taken" if trial.name == report.winner else kind,
                "drop": trial.drop.value,
                height: value,
                "low": trial.speedup_low if report.objective == "latency" else None,
                "high": trial.speedup_high if report.objective == "latency" else None,
                "front": "yes" if trial.on_front else "no",
            }
        )
    kinds = ["ours", "without this tool", "taken"]
    scale = {"type": "symlog", "constant": max(report.max_drop, 1e-6)}
    points = _mark("point", "drop", height, filled=True, size=90)
    points["encoding"] |= {
        "color": _colour("kind", kinds),
        "shape": {"field": "kind", "type": "nominal", "scale": {"domain": kinds}},
        "tooltip": _tooltip(("trial", "kind", "drop", height, "front")),
    }
    ticks = [float(f"{report.max_drop * multiple:.3g}") for multiple in _TICKS]
    furthest = max((float(row["drop"] or 0) for row in rows), default=0.0)
    points["encoding"]["x"] |= {
        "scale": scale,
        **_axis(
            f"drop: {_quantity(report)}",
            values=[tick for tick in ticks if tick <= max(furthest, report.max_drop)],
            format=".3~g",
        ),
    }
    points["encoding"]["y"] |= _axis(
        "times as fast as the original" if height == "speed-up" else "megabytes"
    )
    spread = _mark("rule", "drop", "low")
    spread["encoding"]["y2"] = {"field": "high"}
    spread["encoding"]["color"] = _colour("kind", kinds)
    limit = _limit("x", report.max_drop, "what may be lost")
    return Chart(
        "What was tried",
        "The higher (of sizes: the lower) and the further left, the better. The vertical line is "
        "what may be lost; bars are 95 % intervals.",
        _chart(rows, [limit, *([spread] if height == "speed-up" else []), points]),
    )


def rank_chart(spectra: Sequence[SiteSpectrum]) -> Chart:
    """The least error at every rank of the site that the reader picks, and the rank it has."""
    names = [printable(spectrum.site) for spectrum in spectra]
    kinds = ["of the weight", "of the outputs", "as compressed"]
    rows = [row for place, spectrum in enumerate(spectra) for row in _rank_rows(place, spectrum)]
    kind = {"calculate": f"{kinds}[datum.k]", "as": "error"}
    line = _mark("line", "rank", "least")
    line["encoding"] |= {"color": _colour("error", kinds)}
    line["encoding"]["x"] |= _axis("rank")
    line["encoding"]["y"] |= _axis("relative error")
    line["transform"] = [{"filter": "datum.k < 2"}]
    point = _mark("point", "rank", "least", filled=True, size=90)
    point["encoding"] |= {
        "color": _colour("error", kinds),
        "tooltip": _tooltip(("error", "rank", "least")),
    }
    point["transform"] = [{"filter": "datum.k == 2"}]
    spec = _chart(rows, [line, point])
    spec["params"] = [
        {
            "name": "picked",
            "value": 0,
            "bind": {
                "input": "select",
                "options": list(range(len(names))),
                "labels": names,
                "name": "Site: ",
            },
        }
    ]
    spec["transform"] = [{"filter": "datum.s == picked"}, kind]
    return Chart(
        "Error against rank",
        "The lines are the least error that any factors of a rank can have; the mark is what the "
        "plan chose. Pick a site under the picture.",
        spec,
    )


def _rank_rows(place: int, spectrum: SiteSpectrum) -> list[Row]:
    """Of the site at ``place``: its curves (``k`` is 0 and 1), and what was chosen (2)."""
    rows: list[Row] = []
    for kind, tail in enumerate((spectrum.weight_tail, spectrum.activation_tail)):
        if tail is None:
            continue
        ranks = np.unique(np.linspace(0, len(tail) - 1, _RANKS).astype(int))
        rows += [
            {"s": place, "k": kind, "rank": int(rank), "least": _short(_root(float(tail[rank])))}
            for rank in ranks
        ]
    if spectrum.rank is not None and spectrum.reached is not None:
        reached = _short(spectrum.reached)
        rows.append({"s": place, "k": 2, "rank": spectrum.rank, "least": reached})
    return rows


def site_chart(plan: CompressionPlan) -> Chart | None:
    """The error of each changed site in the order of the model, beside the least at its size."""
    sites = [site for site in plan.sites if site.error is not None and site.kept is not None]
    if not sites:
        return None
    rows: list[Row] = []
    for place, site in enumerate(sites):
        assert site.error is not None
        told: Row = {"site": printable(site.site), "place": place, "kept": site.kept}
        rows.append({**told, "figure": "as compressed", "error": site.error.reached})
        rows.append({**told, "figure": "the least at this rank", "error": site.error.bound})
    points = _mark("point", "place", "error", filled=True, size=50)
    points["encoding"] |= {
        "color": _colour("figure", ["as compressed", "the least at this rank"]),
        "tooltip": _tooltip(("site", "figure", "error", "kept")),
    }
    points["encoding"]["x"] |= _axis("site, in the order of the model")
    points["encoding"]["y"] |= _axis("relative error")
    return Chart(
        "Errors of the sites",
        "Each site's own error on calibrated inputs, from the first layer to the last.",
        _chart(rows, [points]),
    )


def depth_chart(inside: InnerComparison) -> Chart | None:
    """The relative error of every value along the depth of the model."""
    rows = _depth_rows(inside.depth, _LEAST_ERROR)
    if not rows:
        return None
    points = _depth_points("values, in the order in which they are computed")
    return Chart(
        "Errors along the depth",
        "Each value inside the graph against its like in the reference. Above the line it counts "
        "as different.",
        _chart(rows, [_limit("y", inside.tolerance, "counts as equal below"), points]),
    )


def profile_chart(profiles: Mapping[str, DepthProfile]) -> Chart | None:
    """The relative errors along the depth of the original, of each of ``profiles`` by its name.

    None where none of them has a value that can be drawn.
    """
    least = _least_drawn([one.error for p in profiles.values() for one in p.values])
    rows = [
        {**row, "model": name}
        for name, profile in profiles.items()
        for row in _depth_rows(profile.values, least)
    ]
    if not rows:
        return None
    points = _depth_points("nodes of the original, in their order")
    points["encoding"]["y"]["scale"] |= {"domainMin": least}
    told = "A mark is a value inside the model, as far as it is from the original's."
    if len(profiles) > 1:
        names = list(profiles)
        points["encoding"] |= {
            "color": _colour("model", names),
            "shape": {"field": "model", "type": "nominal", "scale": {"domain": names}},
        }
        points["encoding"]["tooltip"] += _tooltip(["model"])
        told = f"{told} The lower of the two at a place is the closer one."
    return Chart(
        "Errors along the depth",
        f"{told} The axis is logarithmic; what is below {least:g} is drawn there.",
        _chart(rows, [points]),
    )


def _least_drawn(errors: Sequence[float | None]) -> float:
    """A power of ten below most of the errors, so that those of equal values take no room."""
    found = [error for error in errors if error is not None and error > _ROUNDED]
    if not found:
        return _ROUNDED
    return float(10 ** (math.floor(math.log10(np.quantile(found, 0.1))) - 1))


def _depth_rows(values: Sequence[DepthError], least: float) -> list[Row]:
    """Of values that can be compared; ``drawn`` is the error, or ``least`` where that is more."""
    return [
        {
            "tensor": printable(one.tensor),
            "operator": printable(one.operator),
            "node": printable(one.node),
            "module": printable(one.module),
            "place": index if one.place is None else one.place,
            "error": _short(one.error),
            "drawn": _short(max(one.error, least)),
        }
        for index, one in enumerate(values)
        if one.error is not None
    ]


def _depth_points(title: str) -> Spec:
    points = _mark("point", "place", "drawn", filled=True, size=30)
    points["encoding"]["tooltip"] = _tooltip(("tensor", "operator", "node", "module", "error"))
    points["encoding"]["x"] |= _axis(title)
    points["encoding"]["y"] |= {"scale": {"type": "log"}, **_axis("relative error", format="~g")}
    return points


def sweep_chart(report: SweepReport, metric: str, figures: Sequence[float | None]) -> Chart:
    """A figure of each variant against the size of its file."""
    rows: list[Row] = [
        {
            "method": printable(row.variant.method.name),
            "variant": printable(f"{row.variant.method.name}, {row.variant.share:.0%}"),
            "megabytes": _megabytes(row.size.candidate_bytes),
            metric: figure,
        }
        for row, figure in zip(report.rows, figures, strict=True)
        if row.size is not None and figure is not None and math.isfinite(figure)
    ]
    methods = list(dict.fromkeys(str(row["method"]) for row in rows))
    points = _mark("line", "megabytes", metric, point={"size": 70, "filled": True})
    points["encoding"] |= {
        "color": _colour("method", methods),
        "tooltip": _tooltip(("variant", "megabytes", metric)),
    }
    points["encoding"]["x"] |= _axis("megabytes of the file")
    points["encoding"]["y"] |= _axis(metric)
    return Chart(
        f"{metric} against size",
        "Each mark is a variant; the further left and the better the figure, the better.",
        _chart(rows, [points]),
    )


def _chart(rows: Sequence[Row], layers: Sequence[Spec]) -> Spec:
    return {
        "$schema": _SCHEMA,
        "data": {"values": list(rows)},
        "width": "container",
        "height": 280,
        "autosize": {"type": "fit", "contains": "padding"},
        "layer": list(layers),
    }


def _mark(kind: str, x: str, y: str, **look: object) -> Spec:
    scale = {"zero": False}
    return {
        "mark": {"type": kind, "opacity": 1, **look},
        "encoding": {
            "x": {"field": x, "type": "quantitative", "scale": scale},
            "y": {"field": y, "type": "quantitative", "scale": scale},
        },
    }


def _axis(title: str, **axis: object) -> Spec:
    return {"title": title, **({"axis": axis} if axis else {})}


def _colour(field: str, categories: Sequence[str]) -> Spec:
    return {
        "field": field,
        "type": "nominal",
        "scale": {"domain": list(categories)},
        "legend": {"title": None, "orient": "top", "labelLimit": 280},
    }


def _tooltip(fields: Sequence[str]) -> list[Spec]:
    return [{"field": field} for field in fields]


def _limit(axis: str, value: float, text: str) -> Spec:
    return {
        "data": {"values": [{"limit": value, "what": text}]},
        "mark": {"type": "rule", "strokeDash": [5, 4]},
        "encoding": {
            axis: {"field": "limit", "type": "quantitative"},
            "tooltip": _tooltip(("what", "limit")),
        },
    }


def _quantiles(stats: LatencyStats) -> list[tuple[float, float]]:
    """Shares of the runs, and what these took at most; older reports have three of them."""
    if stats.quantiles_ms:
        shares = np.linspace(0, 1, len(stats.quantiles_ms))
        return [(float(share), ms) for share, ms in zip(shares, stats.quantiles_ms, strict=True)]
    few = ((0, stats.min_ms), (0.5, stats.p50_ms), (0.9, stats.p90_ms), (0.99, stats.p99_ms))
    return [(float(share), ms) for share, ms in few]


def _quantity(report: OptimizeReport) -> str:
    return next((t.drop.quantity for t in report.trials if t.drop is not None), "drop")


def _megabytes(value_bytes: int | None) -> float | None:
    return None if value_bytes is None else value_bytes / 1e6


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _root(value: float) -> float:
    return math.sqrt(max(value, 0.0))


def _short(value: float) -> float:
    return float(f"{value:.4g}")
