"""All linear layers by SVD, then fine-tuning: ViT and BERT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compress_onnx.pipeline.recipe import DataSpec, MaskedData, PythonData, RecoverySpec
from compress_onnx.pipeline.results import SweepRow
from studies.reproduction import published
from studies.reproduction.drawing import Panel, draw
from studies.reproduction.full_size import (
    LATENCY_HEADER,
    latency_cells,
    measure_full_size,
    vit_base,
)
from studies.reproduction.measuring import (
    accuracy,
    drop,
    logit_error,
    measure,
    ranks,
    site_error,
)
from studies.reproduction.section import Claim, Picture, Section, Table, claim, table
from studies.reproduction.workplace import Case, Models, Workplace

SHARES = tuple(row.share for row in published.FINE_TUNING)
"""The document's shares."""
METHODS: Mapping[str, str] = {"svd": "SVD", "auto": "`auto`"}


@dataclass(frozen=True)
class Pair:
    """One variant before and after training."""

    before: SweepRow
    after: SweepRow

    @property
    def recovered(self) -> float | None:
        """The share of the lost accuracy that training brought back; None where none was lost."""
        original = self.before.metrics["accuracy_reference"]
        lost = original - self.before.metrics["accuracy"]
        if lost <= 0:
            return None
        return (self.after.metrics["accuracy"] - self.before.metrics["accuracy"]) / lost


Pairs = Mapping[tuple[str, float], Pair]


@dataclass(frozen=True)
class TrainedCase(Case):
    """One of the two models, and how it is trained.

    Attributes:
        shares: of the parameters; the document's, and smaller ones where those cost nothing.
        training: what to train on; None for the calibration data.
        steps: of training.
    """

    shares: tuple[float, ...]
    training: DataSpec | None
    steps: int


def run_vit(place: Workplace) -> Section:
    """Experiment 4, with the document's ranks on a graph of full size."""
    section = _run(place, _VIT)
    experiment, note = vit_base(place)
    rows = []
    for row in place.some(published.FINE_TUNING):
        found = measure_full_size(experiment, row.rank)
        rows.append([f"rank {row.rank} ({row.share:.0%})", *latency_cells(found)])
    latency = table(f"The document's ranks at full size. {note}", LATENCY_HEADER, rows)
    return section.model_copy(update={"tables": (*section.tables, latency)})


def run_bert(place: Workplace) -> Section:
    """Experiment 6."""
    return _run(place, _BERT)


def _run(place: Workplace, case: TrainedCase) -> Section:
    lessons = RecoverySpec(
        data=case.training,
        budget=None,
        steps=place.steps(case.steps),
        labels=1.0,
        pooled=0.0,
        mixing=0.0,  # mixed samples have no labels
    )
    experiment = place.experiment(case.models, lessons)
    pairs = {
        (method, share): Pair(
            measure(experiment, method, params=share),
            measure(experiment, method, params=share, recovery=experiment.recipe.recovery),
        )
        for share in place.some(case.shares)
        for method in METHODS
    }
    picture = place.pictures / f"{case.name}.png"
    first = next(iter(pairs.values()))
    original = first.before.metrics["accuracy_reference"]
    assert experiment.lessons is not None
    trained = experiment.recipe.recovery
    assert trained is not None
    end = f"{trained.steps} steps" if trained.steps else f"{trained.budget:.0f} s"
    draw(picture, [_panel(pairs, original)])
    return Section(
        name=case.name,
        title=case.title,
        published=case.published,
        recipes=(case.models.hub,),
        twin=f"{place.description(case.models, experiment, original)}. Training: {end} on "
        f"{len(experiment.lessons.samples)} samples, against the original's outputs and labels.",
        tables=(_table(pairs, original, theirs=case is _VIT),),
        pictures=(Picture(file=picture.name, caption="Accuracy without and with training."),),
        claims=tuple(_claims(pairs, original, end, theirs=case is _VIT)),
    )


def _table(pairs: Pairs, original: float, *, theirs: bool) -> Table:
    known = {row.share: row for row in published.FINE_TUNING} if theirs else {}
    header = ["parameters kept", "method"]
    header += ["theirs: rank", "accuracy", "fine-tuned"] if theirs else []
    header += ["ranks", "ours: accuracy", "fine-tuned", "loss after it", "brought back"]
    header += ["logits' error, before and after", "sites' error ≥ bound"]
    rows = [["100%", "original"]]
    rows[0] += ["768", f"{published.VIT_ORIGINAL:.2f}", ""] if theirs else []
    rows[0] += ["", f"{original:.4f}", "", "", "", "", ""]
    for (method, share), pair in pairs.items():
        row = [f"{share:.0%}", METHODS[method]]
        if theirs:
            row += _theirs(known[share]) if method == "svd" and share in known else ["", "", ""]
        row += [
            ranks(pair.before),
            accuracy(pair.before),
            accuracy(pair.after),
            drop(pair.after),
            "nothing was lost" if pair.recovered is None else f"{pair.recovered:.0%}",
            f"{logit_error(pair.before):.3f} → {logit_error(pair.after):.3f}",
            site_error(pair.before),
        ]
        rows.append(row)
    return table("All linear layers, without and with training", header, rows, texts=2)


def _theirs(row: published.FineTuned) -> list[str]:
    return [str(row.rank), f"{row.untrained:.3g}", f"{row.trained:.2f}"]


def _claims(pairs: Pairs, original: float, end: str, *, theirs: bool) -> list[Claim]:
    """Judged after training for ``end``; with the document's figures where they are ``theirs``."""
    shares = sorted({share for _, share in pairs}, reverse=True)
    least = [share for share in shares if share >= min(SHARES)][-1]
    svd = {share: pairs["svd", share] for share in shares}
    ours = {share: pairs["auto", share] for share in shares}
    at = " / ".join(f"{share:.0%}" for share in shares)
    return [
        claim(
            "Without training, SVD of all linear layers ruins the model"
            + (" (0.376 / 0.14 / 0.01 at 48 / 33 / 19 %, of 0.86)." if theirs else "."),
            svd[least].before.metrics["accuracy"] < original / 2,
            f"At {at}: {_accuracies(svd, shares, before=True)} of {original:.4f}.",
        ),
        claim(
            "Fine-tuning brings most of the loss back, also at 19 %.",
            (svd[least].recovered or 0.0) > 0.5,
            f"At {at}: {_accuracies(svd, shares)} after {end}; of what was lost that brings back "
            f"{' / '.join(_share_text(svd[share].recovered) for share in shares)}.",
        ),
        claim(
            "Training is what it takes (the document compresses by SVD only).",
            all(
                ours[s].before.metrics["accuracy"] < svd[s].after.metrics["accuracy"]
                for s in shares
            ),
            f"`auto` has {_accuracies(ours, shares, before=True)} without any training, and "
            f"{_accuracies(ours, shares)} with it.",
        ),
    ]


def _accuracies(pairs: Mapping[float, Pair], shares: Sequence[float], before: bool = False) -> str:
    found = [pairs[share].before if before else pairs[share].after for share in shares]
    return " / ".join(accuracy(row) for row in found)


def _share_text(share: float | None) -> str:
    return "nothing" if share is None else f"{share:.0%}"


def _panel(pairs: Pairs, original: float) -> Panel:
    lines: dict[str, list[tuple[float, float]]] = {}
    for (method, share), pair in pairs.items():
        label = METHODS[method]
        lines.setdefault(label, []).append((share, pair.before.metrics["accuracy"]))
        point = share, pair.after.metrics["accuracy"]
        lines.setdefault(f"{label}, fine-tuned", []).append(point)
    return Panel("all linear layers", "share of the parameters", "accuracy", lines, original)


_VIT = TrainedCase(
    name="vit-fine-tuning",
    title="4. ViT, all linear layers: SVD, then fine-tuning",
    published="ViT-B/16-224 on ImageNet (top 1), all linear layers, largest rank 244 / 192 / 96.",
    models=Models("hub/vit-imagenet", "digits-vit", "`digits-vit`"),
    shares=(*SHARES, 0.1, 0.05),
    training=None,
    steps=400,
)
_BERT = TrainedCase(
    name="bert-fine-tuning",
    title="6. BERT, all linear layers: SVD, then fine-tuning",
    published="BERT-large-uncased-whole-word-masking on MultiNLI, filling in masked words (top 5), "
    "all linear layers. Figures are drawn, not printed.",
    models=Models("hub/bert-multinli", "mini-bert", "`mini-bert`"),
    shares=SHARES,
    # What the steps see of it, once; a tenth of what there is is held out at a price.
    training=MaskedData(
        kind="masked",
        sentences=PythonData(
            kind="python",
            loader="data/verses.py:verses",
            arguments={"split": "train"},
            limit=6000,
        ),
    ),
    steps=160,
)
