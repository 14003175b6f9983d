"""``pareto.json``: what each trial of ``optimize`` loses and takes, and which are on the front."""

from __future__ import annotations

from pydantic_core import to_json

from compress_onnx.pipeline.results import OptimizeReport, Trial

PARETO_NAME = "pareto.json"


def pareto_json(report: OptimizeReport) -> str:
    """The text of the file; speed-ups are over the original, null where nothing was timed.

    Where several shapes of inputs were timed, ``speedup`` is the geometric mean of ``speedup_at``.
    """
    content = {
        "max_drop": report.max_drop,
        "objective": report.objective,
        "provider": report.provider,
        "inputs": report.inputs,
        "winner": report.winner,
        "points": [_point(trial) for trial in report.trials],
    }
    return to_json(content, indent=2, inf_nan_mode="strings").decode() + "\n"


def _point(trial: Trial) -> dict[str, object]:
    return {
        "name": trial.name,
        "from": "rival" if trial.rival else "ours",
        "drop": trial.drop.value if trial.drop else None,
        "quantity": trial.drop.quantity if trial.drop else None,
        "size_bytes": trial.size_bytes,
        "speedup": trial.speedup,
        "speedup_at": trial.speedup_at,
        "within": trial.within,
        "on_front": trial.on_front,
    }
