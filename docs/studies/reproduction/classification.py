"""SVDLoRA on image classification: sub-matrices at fixed parameters, and the share at three."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from compress_onnx.pipeline.recipes.single import ModelExperiment
from compress_onnx.pipeline.results import SweepRow
from studies.reproduction import published
from studies.reproduction.drawing import Panel, draw
from studies.reproduction.measuring import (
    accuracy,
    drop,
    logit_error,
    measure,
    ranks,
    run_time,
    run_time_text,
    site_error,
)
from studies.reproduction.section import Claim, Picture, Section, Table, claim, table
from studies.reproduction.workplace import Models, Workplace

MODELS = Models(
    "hub/vit-cifar10",
    "digits-vit",
    "`digits-vit`: a ViT that we trained on scikit-learn's digits",
)
SHARE = 0.2
"""Of the parameters, where stages vary; the document does not say what its share is."""
STORED_STAGES = (1, 2, 3, 4)
PICTURE = "svdlora-classification.png"
SAME_ERROR = 1e-3
"""Models whose outputs' errors differ by less, relatively, are the same model but for rounding."""

X = TypeVar("X", int, float)
ByStages = Mapping[int, SweepRow]
ByShare = Mapping[float, SweepRow]


def run(place: Workplace) -> Section:
    """Experiment 1."""
    experiment = place.experiment(MODELS)
    stages = place.some(sorted(published.BY_STAGES))
    shares = place.some(sorted(published.BY_SHARE))
    merged = {n: _svdlora(experiment, n, SHARE) for n in stages}
    branches = {n: _svdlora(experiment, n, SHARE, layout="branches") for n in stages}
    stored = {n: _svdlora(experiment, n, SHARE, store="int4") for n in place.some(STORED_STAGES)}
    by_share = {share: _svdlora(experiment, 3, share) for share in shares}
    by_share_branches = {
        share: _svdlora(experiment, 3, share, layout="branches") for share in shares
    }
    original = merged[stages[0]].metrics["accuracy_reference"]
    _draw(place, merged, by_share, original)
    return Section(
        name="svdlora-classification",
        title="1. SVDLoRA on image classification",
        published="A ViT on CIFAR-10, its linear layers replaced by 1–9 sub-matrices at fixed "
        "parameters, and by three sub-matrices at 10–100 % of the parameters.",
        recipes=(MODELS.hub,),
        twin=f"{place.description(MODELS, experiment, original)}; all linear layers of the "
        "encoder, the same share of each.",
        tables=(
            _stage_table(merged, branches),
            _stored_table(stored),
            _share_table(by_share, by_share_branches),
        ),
        pictures=(Picture(file=PICTURE, caption="Accuracy, the document's and ours."),),
        claims=tuple(_claims(merged, stored, by_share, by_share_branches, original)),
    )


def _svdlora(
    experiment: ModelExperiment,
    stages: int,
    share: float,
    layout: str = "merged",
    store: str = "same",
) -> SweepRow:
    return measure(
        experiment,
        "svdlora",
        options={"stages": stages, "layout": layout},
        benchmark=store == "same",
        params=share,
        store=store,
        rank_multiple=1,
        allow_larger=True,
    )


def _stage_table(merged: ByStages, branches: ByStages) -> Table:
    header = [
        "sub-matrices", "theirs: accuracy", "run time", "ours: accuracy", "loss", "logits' error",
        "sites' error ≥ bound", "run time, merged", "run time, branches",
    ]  # fmt: skip
    theirs = published.BASELINE.run_time
    rows = [
        [
            str(n),
            f"{published.BY_STAGES[n].accuracy:.4f}",
            f"{published.BY_STAGES[n].run_time / theirs:.2f}",
            *_ours(row),
            run_time_text(row),
            run_time_text(branches[n]),
        ]
        for n, row in merged.items()
    ]
    return table(
        f"Fixed parameters ({SHARE:.0%} here); run times over the original's", header, rows
    )


def _ours(row: SweepRow) -> list[str]:
    return [accuracy(row), drop(row), f"{logit_error(row):.4f}", site_error(row)]


def _stored_table(stored: ByStages) -> Table:
    header = ["sub-matrices", "accuracy", "loss", "logits' error", "sites' error ≥ bound"]
    rows = [[str(n), *_ours(row)] for n, row in stored.items()]
    return table(f"The same with factors stored in 4 bits ({SHARE:.0%})", header, rows)


def _share_table(merged: ByShare, branches: ByShare) -> Table:
    header = [
        "parameters kept", "theirs: accuracy", "run time", "rank", "ours: accuracy", "loss",
        "logits' error", "sites' error ≥ bound", "run time, merged", "run time, branches",
    ]  # fmt: skip
    theirs = published.BASELINE.run_time
    rows = [
        [
            f"{share:.0%}",
            f"{published.BY_SHARE[share].accuracy:.4f}",
            f"{published.BY_SHARE[share].run_time / theirs:.2f}",
            ranks(row),
            *_ours(row),
            run_time_text(row),
            run_time_text(branches[share]),
        ]
        for share, row in merged.items()
    ]
    return table("Three sub-matrices; run times over the original's", header, rows)


def _claims(
    merged: ByStages, stored: ByStages, shares: ByShare, branches: ByShare, original: float
) -> list[Claim]:
    errors = [logit_error(row) for row in merged.values()]
    spread = max(errors) / min(errors) - 1
    rounded = [stored[n].metrics["accuracy"] for n in stored]
    rounded_errors = [logit_error(row) for row in stored.values()]
    largest = shares[max(shares)].metrics["accuracy"]
    best_share = max(shares, key=lambda share: shares[share].metrics["accuracy"])
    half = min(shares, key=lambda share: abs(share - 0.5))
    times = {share: run_time(row) for share, row in shares.items()}
    fastest, slowest = min(times, key=times.__getitem__), max(times, key=times.__getitem__)
    slower = [run_time(branches[share]) / run_time(shares[share]) for share in shares]
    return [
        claim(
            "At fixed parameters the number of sub-matrices matters (0.9571 with one, 0.9622 with "
            "four).",
            spread > SAME_ERROR,
            f"Over {_range(merged)} sub-matrices the accuracies are "
            f"{_figures(row.metrics['accuracy'] for row in merged.values())}, and the errors of "
            f"the logits differ by {spread:.1e} of themselves.",
        ),
        claim(
            "They matter once factors are rounded: a later stage repairs the rounding of the "
            "earlier ones (not claimed by the document, whose factors are exact).",
            min(rounded_errors[1:]) < rounded_errors[0] * (1 - SAME_ERROR),
            f"In 4 bits the logits' error is {_figures(rounded_errors)} with {_range(stored)} "
            f"sub-matrices, the accuracy {_figures(rounded)}.",
        ),
        claim(
            "Half of the parameters are enough: nothing is lost (0.9767 of 0.9769).",
            shares[half].metrics["accuracy_drop_low"] <= 0,
            f"Ours at {half:.0%}: {accuracy(shares[half])} of {original:.4f}, a loss of "
            f"{drop(shares[half])}.",
        ),
        claim(
            "More parameters are not always better (0.9759 with 100 %, 0.9768 with 70 %).",
            shares[best_share].metrics["accuracy"] > largest,
            f"Ours is best at {best_share:.0%} ({shares[best_share].metrics['accuracy']:.4f}; "
            f"{largest:.4f} with {max(shares):.0%}). Both differences are a few images.",
        ),
        claim(
            "The run time hardly depends on the share (0.98–1.00 of the original's).",
            times[slowest] - times[fastest] < 0.1,
            f"On ONNX Runtime merged chains take {times[fastest]:.2f} (at {fastest:.0%}) to "
            f"{times[slowest]:.2f} (at {slowest:.0%}) of the original's time, and three branches "
            f"{min(slower):.2f}–{max(slower):.2f} times what a merged chain takes.",
        ),
    ]


def _range(rows: ByStages) -> str:
    return f"{min(rows)}–{max(rows)}"


def _figures(values: Iterable[float]) -> str:
    numbers = [f"{value:.4f}" for value in values]
    return numbers[0] if len(set(numbers)) == 1 else ", ".join(numbers)


def _draw(place: Workplace, stages: ByStages, shares: ByShare, original: float) -> None:
    draw(
        place.pictures / PICTURE,
        [
            _panel("fixed parameters", "sub-matrices", published.BY_STAGES, stages, original),
            _panel(
                "three sub-matrices",
                "share of the parameters",
                published.BY_SHARE,
                shares,
                original,
            ),
        ],
    )


def _panel(
    title: str,
    x: str,
    theirs: Mapping[X, published.Classified],
    ours: Mapping[X, SweepRow],
    original: float,
) -> Panel:
    """Accuracies over the original's, so that two data sets share one axis."""
    baseline = published.BASELINE.accuracy
    lines = {
        "document, CIFAR-10": [(at, row.accuracy / baseline) for at, row in theirs.items()],
        "ours": [(at, row.metrics["accuracy"] / original) for at, row in ours.items()],
    }
    return Panel(title, x, "accuracy over the original's", lines, level=1.0)
