"""``compress-onnx analyze``: what could be compressed, and what it would cost at least."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.markup import escape

from graph_passes.planning import make_plan
from graph_passes.request import CompressionSpec
from pipeline.atomic import atomic_file
from pipeline.cli import options
from pipeline.cli.console import ProgressBars, errors, out, print_plan_error, table
from pipeline.compress import calibrate_subject, evaluate_plan, open_subject, spectra_of
from pipeline.report.formats import significant
from pipeline.report.pictures import SiteSpectrum

_ENERGIES = (0.9, 0.99)


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("analyze")(analyze)


def analyze(
    model: options.Model,
    calibration: options.CalibrationFile = None,
    mask: options.Mask = None,
    params: Annotated[
        float, typer.Option("--params", "-p", help="Show the least error at this share.")
    ] = 0.5,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Also write the whole spectra here.")
    ] = None,
    batch_size: options.BatchSize = 32,
    no_cache: options.NoCache = False,
) -> None:
    """List the linear sites of MODEL with the least error that any factorization could have.

    Errors are relative (0 exact, 1 all lost); with `--calibration` they are those of the sites'
    outputs on that data, else those of the weights. Changes nothing.
    """
    subject = open_subject(model)
    calibrated = None
    if calibration is not None:
        calibrated = calibrate_subject(
            subject,
            options.samples_for(model, calibration, mask),
            batch_size=batch_size,
            cache=options.cache_unless(no_cache),
            progress=ProgressBars(),
        )
    request = options.validated(
        CompressionSpec, {"method": {"name": "svd"}, "params": params, "rank_multiple": 1}
    )
    plan = make_plan(subject.table, request)
    spectra = spectra_of(subject, plan, calibrated, ProgressBars())
    plan = evaluate_plan(subject, plan, calibrated, ProgressBars())
    errors_at_share = {site.site: site.error for site in plan.sites}
    shown = table(
        "site", "group", "shape", "rank for 90 %", "for 99 %", f"least error at {params:.0%}"
    )
    for site, spectrum in zip(subject.table.sites, spectra, strict=True):
        error = errors_at_share[site.name]
        least = "dense" if error is None else significant(error.bound)
        energies = (str(rank_for(tail_of(spectrum), energy)) for energy in _ENERGIES)
        shape = f"{site.in_features}x{site.out_features}"
        shown.add_row(escape(site.name), site.group, shape, *energies, least)
    out.print(shown)
    for node in plan.skipped:
        out.print(f"skipped {node.op_type} {node.node}: {node.reason}", style="dim", markup=False)
    out.print(
        f"{len(plan.sites)} linear sites with {plan.parameters_before:,} parameters, "
        f"{len(plan.skipped)} other matrix products",
        highlight=False,
    )
    if plan.error is not None:
        out.print(f"plain SVD at {params:.0%}, uniform ranks, on these data:", highlight=False)
        print_plan_error(plan.error)
    for note in calibrated.notes if calibrated else ():
        errors.print(f"note: {note}", markup=False, highlight=False)
    if json_path is not None:
        with atomic_file(json_path) as temporary:
            temporary.write_text(json.dumps([_plain(s) for s in spectra], indent=1), "utf-8")


def tail_of(spectrum: SiteSpectrum) -> np.ndarray:
    """The squared error at each rank in the best metric known."""
    activation = spectrum.activation_tail
    return spectrum.weight_tail if activation is None else activation


def rank_for(tail: np.ndarray, energy: float) -> int:
    """The least rank that keeps ``energy`` of the variance."""
    return int(np.argmax(tail <= 1 - energy))


def _plain(spectrum: SiteSpectrum) -> dict[str, object]:
    activation = spectrum.activation_tail
    return {
        "site": spectrum.site,
        "group": spectrum.group,
        "weight_tail": spectrum.weight_tail.tolist(),
        "activation_tail": None if activation is None else activation.tolist(),
    }
