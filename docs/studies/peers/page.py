"""The document: figures, verdicts, seconds, and the protocol beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from compress_onnx.pipeline.report.formats import MISSING
from compress_onnx.pipeline.report.markdown import Markdown, template
from compress_onnx.pipeline.results import Environment
from studies.peers.course import CourseReport, Entry, Figures, Standing

CHAMPION = "auto"
PLAINEST = "svd"
"""Our own, and also what the publications start from: it counts among the peers."""


@dataclass(frozen=True)
class Quantity:
    """A figure that methods are compared by; more of it is better where it is ``rising``."""

    name: str
    value: Callable[[Figures], float]
    rising: bool = True
    digits: int = 3

    def text(self, figures: Figures) -> str:
        """The figure, rounded."""
        return f"{self.value(figures):.{self.digits}f}"


def _metric(name: str) -> Callable[[Figures], float]:
    return lambda figures: figures.metrics[name]


QUANTITIES: Mapping[str, Sequence[Quantity]] = {
    "embedding": (
        Quantity("cosine", _metric("cosine")),
        Quantity("neighbour overlap", _metric("neighbour_overlap")),
        Quantity("Spearman", _metric("spearman")),
    ),
    "accuracy": (
        Quantity("accuracy", _metric("accuracy"), digits=4),
        Quantity("relative L2 of the logits", lambda f: f.relative_l2, rising=False, digits=4),
    ),
}


@dataclass(frozen=True)
class Verdict:
    """Our default against the best peers in one quantity at one size.

    ``outcome`` is ``ahead``, ``tie`` or ``behind``, by the exact figures.
    """

    share: float
    recovered: bool
    quantity: Quantity
    ours: Figures
    best: Figures
    peers: tuple[str, ...]
    outcome: str


def render(
    courses: Sequence[CourseReport], environment: Environment, *, command: str, cached: bool
) -> str:
    """The document.

    Args:
        courses: one for each model.
        environment: of the run.
        command: what was run.
        cached: whether activations and our gradients came from a cache, so that nobody knows
            what they cost.
    """
    return template("peers.md.jinja", "studies.peers").render(
        courses=courses,
        environment=environment,
        command=Markdown(command),
        cached=cached,
        methods=methods,
        figures=figures,
        recovered=recovered,
        intervals=intervals,
        verdicts=lambda course: verdict_table(verdicts(course)),
        seconds=seconds,
    )


def methods(course: CourseReport) -> Markdown:
    """What each method is."""
    rows = [[_title(s) + (" (ours)" if s.ours else ""), s.source] for s in course.standings]
    return _table(["method", "what it is"], rows, texts=2)


def figures(course: CourseReport) -> Markdown:
    """All quantities at all sizes, as compressed."""
    return _by_size(course, "without recovery", lambda entry: _cell(course, entry.figures))


def recovered(course: CourseReport) -> Markdown:
    """The same after recovery."""
    return _by_size(
        course,
        f"{course.steps} steps of recovery",
        lambda entry: _cell(course, entry.recovered.figures) if entry.recovered else MISSING,
    )


def intervals(course: CourseReport) -> Markdown:
    """The 95 % intervals that validation gives."""
    return _by_size(course, "without recovery", lambda entry: _interval(course, entry.figures))


def verdicts(course: CourseReport) -> list[Verdict]:
    """Our default against the best of the peers, at each size, before and after recovery."""
    shares = [entry.share for entry in course.standings[0].entries]
    fields = [
        (share, after, _field(course, share, after)) for after in (False, True) for share in shares
    ]
    return [
        _verdict(field, quantity, share, after)
        for share, after, field in fields
        if field
        for quantity in QUANTITIES[course.kind]
    ]


def verdict_table(found: Iterable[Verdict]) -> Markdown:
    """Verdicts, one a line."""
    rows = [
        [
            f"{verdict.share:.0%}",
            "yes" if verdict.recovered else "no",
            verdict.quantity.name,
            verdict.quantity.text(verdict.ours),
            verdict.quantity.text(verdict.best),
            ", ".join(verdict.peers),
            verdict.outcome,
        ]
        for verdict in found
    ]
    return _table(["size", "recovery", "quantity", "auto", "best peer", "which", "auto is"], rows)


def seconds(course: CourseReport) -> Markdown:
    """What each method cost, and the parameters that it kept at each size."""
    rows = []
    for standing in course.standings:
        activations_s = course.calibrate_s if standing.activations else 0.0
        compress_s = [entry.seconds for entry in standing.entries]
        recover_s = [entry.recovered.seconds for entry in standing.entries if entry.recovered]
        steps = ([activations_s], [standing.learn_s], compress_s, recover_s)
        kept = ", ".join(f"{entry.kept:.1%}" for entry in standing.entries)
        rows.append([_title(standing), *(f"{fmean(s):.1f}" if s else MISSING for s in steps), kept])
    header = ["seconds", "activations", "learn", "compress", "recover", "parameters kept"]
    return _table(header, rows)


def _field(course: CourseReport, share: float, after: bool) -> dict[str, Figures]:
    """The figures of our default and of all peers; none where nothing was recovered."""
    competing = [s for s in course.standings if not s.ours or s.name in {CHAMPION, PLAINEST}]
    entries = {s.name: next(e for e in s.entries if e.share == share) for s in competing}
    if not after:
        return {name: entry.figures for name, entry in entries.items()}
    return {name: e.recovered.figures for name, e in entries.items() if e.recovered is not None}


def _verdict(
    field: Mapping[str, Figures], quantity: Quantity, share: float, after: bool
) -> Verdict:
    ours = field[CHAMPION]
    peers = {name: figures for name, figures in field.items() if name != CHAMPION}
    best = (max if quantity.rising else min)(peers.values(), key=quantity.value)
    names = [n for n, figures in peers.items() if quantity.value(figures) == quantity.value(best)]
    lead = quantity.value(ours) - quantity.value(best)
    if not quantity.rising:
        lead = -lead
    outcome = "ahead" if lead > 0 else "tie" if lead == 0 else "behind"
    return Verdict(share, after, quantity, ours, best, tuple(names), outcome)


def _cell(course: CourseReport, figures: Figures) -> str:
    return " / ".join(quantity.text(figures) for quantity in QUANTITIES[course.kind])


def _interval(course: CourseReport, figures: Figures) -> str:
    metrics = figures.metrics
    if course.kind == "embedding":
        return f"{metrics['cosine_low']:.3f} … {metrics['cosine_high']:.3f}"
    low, high = -metrics["accuracy_drop_high"], -metrics["accuracy_drop_low"]
    return f"{low:+.4f} … {high:+.4f}"


def _by_size(course: CourseReport, title: str, text: Callable[[Entry], str]) -> Markdown:
    header = [title, *(f"{entry.share:.0%}" for entry in course.standings[0].entries)]
    rows = [[_title(s), *(text(entry) for entry in s.entries)] for s in course.standings]
    return _table(header, rows)


def _title(standing: Standing) -> str:
    return f"`{standing.name}`" if standing.ours else standing.name


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> Markdown:
    """A table of cells that are Markdown already; the first ``texts`` columns are on the left."""
    rule = [":---"] * texts + ["---:"] * (len(header) - texts)
    return Markdown("\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *rows]))
