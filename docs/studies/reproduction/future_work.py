"""What the SVDLoRA document leaves to the future: mixtures of experts, other methods, a bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from compress_onnx.graph_passes.planning.plan import OptionValue
from compress_onnx.pipeline.recipes.single import ModelExperiment
from compress_onnx.pipeline.report.formats import MISSING, significant
from compress_onnx.pipeline.results import SweepRow
from studies.reproduction.drawing import Panel, draw
from studies.reproduction.measuring import (
    accuracy,
    drop,
    kept,
    logit_error,
    measure,
    site_error,
)
from studies.reproduction.section import Claim, Picture, Section, Table, claim, table
from studies.reproduction.workplace import MODELS, Models, Workplace

Layout = Literal["stacked", "separate"]
Rows = Mapping[tuple[str, float], SweepRow]
"""By method and share."""

NAME = "future-work"
SHARES = (0.19, 0.33, 0.5)
SVDLORA, EXACT, BEST = "svdlora", "asvd", "auto"
METHODS: Mapping[str, str] = {
    "svd": "SVD",
    SVDLORA: "SVDLoRA, 3 sub-matrices",
    "asvd-diagonal": "ASVD by scaling",
    EXACT: "ASVD, exact",
    "gauss-newton": "two-sided (gauss-newton)",
    BEST: "`auto`",
}
LAYOUTS: Mapping[Layout, str] = {
    "stacked": "one stack [E, K, N] a layer",
    "separate": "a product an expert",
}
VIT = Models(
    "hub/vit-cifar10",
    "digits-vit",
    "`digits-vit`: a ViT that we trained on scikit-learn's digits",
)
SWITCH = "digits-switch"
TIGHT = 1e-3
"""Errors that exceed their bound by less, relatively, reach it but for the rounding to float32."""


def run(place: Workplace) -> Section:
    """Experiment 7."""
    shares = place.some(SHARES)
    experts = {layout: _measure(_switch(place, layout), shares) for layout in LAYOUTS}
    vit = place.experiment(VIT)
    rows = _measure(vit, shares)
    original = rows[SVDLORA, shares[0]].metrics["accuracy_reference"]
    experts_original = experts["stacked"][SVDLORA, shares[0]].metrics["accuracy_reference"]
    _draw(place, rows, experts["stacked"])
    return Section(
        name=NAME,
        title="7. What the document leaves to the future: experts, other methods, a bound",
        published="The SVDLoRA document names Switch transformers and mixtures of experts, a "
        "comparison with other methods, and a theoretical lower bound as future work; there is no "
        "set-up of theirs.",
        recipes=(SWITCH,),
        twin=f"`{SWITCH}`: a transformer with two Switch layers of four experts that we trained on "
        f"scikit-learn's digits (accuracy {experts_original:.4f}); the experts' weights only, in "
        "two layouts of the same numbers. The other methods: "
        f"{place.description(VIT, vit, original)}, all linear layers.",
        tables=(
            *(_table(f"Experts, {text}", experts[layout]) for layout, text in LAYOUTS.items()),
            _table("SVDLoRA and the other methods, all linear layers of the ViT", rows),
        ),
        pictures=(
            Picture(
                file=f"{NAME}.png",
                caption="Error of the logits by share, and the sites' errors over their bound.",
            ),
        ),
        claims=(
            *_claims_on_experts(experts),
            _claim_on_methods(rows),
            _claim_on_the_bound([rows, *experts.values()]),
        ),
    )


def _switch(place: Workplace, layout: Layout) -> ModelExperiment:
    """The Switch transformer with its experts in ``layout``."""
    models = Models(SWITCH, SWITCH, "")
    if layout == "stacked":
        return place.experiment(models)
    known = place.experiment(models)
    source = known.recipe.source.model_copy(update={"model": f"digits_switch.switch:{layout}"})
    recipe = known.recipe.model_copy(update={"name": f"{SWITCH}-{layout}", "source": source})
    return place.prepare(recipe, MODELS)


def _measure(experiment: ModelExperiment, shares: Sequence[float]) -> Rows:
    options: Mapping[str, Mapping[str, OptionValue]] = {SVDLORA: {"stages": 3}}
    return {
        (method, share): measure(experiment, method, options=options.get(method), params=share)
        for method in METHODS
        for share in shares
    }


def _table(title: str, rows: Rows) -> Table:
    header = [
        "parameters kept", "method", "accuracy", "loss", "logits' error", "sites' error ≥ bound",
        "≥ at any ranks",
    ]  # fmt: skip
    cells = [
        [
            kept(row),
            METHODS[method],
            accuracy(row),
            drop(row),
            f"{logit_error(row):.4f}",
            site_error(row),
            MISSING if row.error is None else significant(row.error.allocation_bound, 3),
        ]
        for (method, _), row in sorted(rows.items(), key=lambda item: -item[0][1])
    ]
    return table(title, header, cells, texts=2)


def _claims_on_experts(experts: Mapping[Layout, Rows]) -> list[Claim]:
    stacked, separate = experts["stacked"], experts["separate"]
    shares = sorted({share for _, share in stacked})
    largest = max(shares)
    lossless = all(
        rows[BEST, largest].metrics["accuracy_drop_low"] <= 0 for rows in experts.values()
    )
    gains = [_gain(rows, share) for rows in experts.values() for share in shares]
    return [
        claim(
            "Low rank carries over to mixtures of experts, expert by expert.",
            lossless,
            f"With {largest:.0%} of the experts' parameters `auto` loses "
            f"{drop(stacked[BEST, largest])} of the accuracy as stacks and "
            f"{drop(separate[BEST, largest])} as products of their own.",
        ),
        claim(
            "Statistics of the tokens that each expert gets are worth more than its weights alone.",
            min(gains) > 1,
            f"At {_shares(shares)} the error of the logits is {_errors(stacked, 'svd', shares)} "
            f"with SVD and {_errors(stacked, EXACT, shares)} with the exact activation-aware "
            f"solution (stacks), {_errors(separate, 'svd', shares)} and "
            f"{_errors(separate, EXACT, shares)} (products of their own): {min(gains):.1f} to "
            f"{max(gains):.1f} times smaller.",
        ),
    ]


def _gain(rows: Rows, share: float) -> float:
    return logit_error(rows["svd", share]) / logit_error(rows[EXACT, share])


def _claim_on_methods(rows: Rows) -> Claim:
    shares = sorted({share for _, share in rows})
    others = [method for method in METHODS if method not in {"svd", SVDLORA}]

    def better(method: str) -> bool:
        return all(
            logit_error(rows[method, s]) < logit_error(rows[SVDLORA, s]) * (1 - TIGHT)
            for s in shares
        )

    winners = [METHODS[method] for method in others if better(method)]
    return claim(
        "SVDLoRA holds its own against other methods at equal parameters.",
        not winners,
        f"At {_shares(shares)} the error of the logits is {_errors(rows, SVDLORA, shares)}, the "
        f"same as plain SVD's ({_errors(rows, 'svd', shares)}); `auto` has "
        f"{_errors(rows, BEST, shares)}. Better at every share: {', '.join(winners) or 'none'}.",
    )


def _claim_on_the_bound(measured: Sequence[Rows]) -> Claim:
    """Nothing is below its bound, and the exact solution is at it."""
    ratios = {key: [_over_bound(rows[key]) for rows in measured] for key in measured[0]}
    tight = [ratio for (method, _), found in ratios.items() if method == EXACT for ratio in found]
    everything = [ratio for found in ratios.values() for ratio in found]
    svdlora = [r for (method, _), found in ratios.items() if method == SVDLORA for r in found]
    return claim(
        "There is a lower bound on the error at a given rank that can be computed beforehand.",
        min(everything) >= 1 - TIGHT and max(tight) <= 1 + TIGHT,
        f"Over {len(everything)} compressed models no error of the sites is below its bound (the "
        f"least is {min(everything):.4f} of it); the exact activation-aware solution reaches it "
        f"({min(tight):.4f}–{max(tight):.4f}), SVDLoRA is at {min(svdlora):.1f}–"
        f"{max(svdlora):.1f} times it. It bounds what the factored layers put out, not what "
        "becomes of that in the model.",
    )


def _over_bound(row: SweepRow) -> float:
    assert row.error is not None
    return row.error.reached / row.error.bound


def _shares(shares: Sequence[float]) -> str:
    return " / ".join(f"{share:.0%}" for share in shares)


def _errors(rows: Rows, method: str, shares: Sequence[float]) -> str:
    return " / ".join(f"{logit_error(rows[method, share]):.4f}" for share in shares)


def _draw(place: Workplace, vit: Rows, experts: Rows) -> None:
    def lines(rows: Rows) -> dict[str, list[tuple[float, float]]]:
        return {
            label: [(share, logit_error(row)) for (name, share), row in rows.items() if name == at]
            for at, label in METHODS.items()
        }

    over = {
        label: [(share, _over_bound(row)) for (name, share), row in vit.items() if name == at]
        for at, label in METHODS.items()
    }
    share = "share of the parameters"
    draw(
        place.pictures / f"{NAME}.png",
        [
            Panel(
                "experts, stacked", share, "error of the logits", lines(experts), logarithmic=True
            ),
            Panel("ViT", share, "error of the logits", lines(vit), logarithmic=True),
            Panel("ViT", share, "sites' error over its bound", over, level=1.0),
        ],
    )
