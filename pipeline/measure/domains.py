"""Further sets of samples beside the one that decides, and the worst of them all.

The worst of a figure is the largest where less is better (distances and drops), and the least
elsewhere. It is NaN where one of the sets has NaN, so that no gate on it can pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from compress_onnx.pipeline.measure.gates import accuracy_quantities
from compress_onnx.pipeline.recipe import MAIN_SET, WORST
from compress_onnx.pipeline.results import ValidationReport

_DISTANCES = ("max_abs", "relative_l2")


def with_domains(
    report: ValidationReport, domains: Mapping[str, ValidationReport]
) -> ValidationReport:
    """The report of the set that decides, with those of the domains and the worst of all in it."""
    if not domains:
        return report
    figures = [accuracy_quantities(each) for each in (report, *domains.values())]
    everywhere = [name for name in figures[0] if all(name in each for each in figures)]
    found = {name: worst(name, [each[name] for each in figures]) for name in everywhere}
    return report.model_copy(update={"domains": dict(domains), "worst": found})


def worst(figure: str, values: Iterable[float]) -> float:
    """The worst of the ``values`` that ``figure`` has."""
    extreme = np.max if _less_is_better(figure) else np.min
    return float(extreme(list(values)))


def by_set(report: ValidationReport) -> dict[str, dict[str, float]]:
    """Each figure that all sets have in common: set by set, then the worst.

    Single outputs are left out, and what repeats a score.

    Nothing where there is one set only.
    """
    sets = {MAIN_SET: accuracy_quantities(report)}
    sets |= {name: accuracy_quantities(domain) for name, domain in report.domains.items()}
    sets[WORST] = report.worst
    return {
        figure: {name: figures[figure] for name, figures in sets.items()}
        for figure in report.worst
        if not figure.startswith("output.") and figure != "kept"  # another name for a score
    }


def _less_is_better(figure: str) -> bool:
    return figure.endswith(_DISTANCES) or "_drop" in figure.rpartition(".")[2]
