"""What an experiment hands over; the document is made of it (:mod:`.page`).

Texts are Markdown. A section is kept as JSON beside the document, so that one experiment can be
measured again without the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from compress_onnx.pipeline.results import Environment, Result

Verdict = Literal["confirmed", "refuted"]


class Table(Result):
    """Rows under a header; the first ``texts`` columns are on the left."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: int = 1


class Picture(Result):
    """A file beside the section, and what it shows."""

    file: str
    caption: str


class Claim(Result):
    """What a document says or asks, what the figures say to it, and which figures those are."""

    statement: str
    verdict: Verdict
    evidence: str


class Section(Result):
    """One experiment.

    Attributes:
        name: of the experiment, and of its files.
        title: with the experiment's number.
        published: the document's set-up.
        recipes: that run that set-up, where model and data can be had.
        twin: what was run instead.
        tables, pictures, claims: what came of it.
        quick: whether on less data and with fewer rows than in full.
        as_published: whether the published set-up was run, and not its twin.
        seconds: what it took.
        environment: where.
    """

    name: str
    title: str
    published: str
    recipes: tuple[str, ...]
    twin: str
    tables: tuple[Table, ...]
    pictures: tuple[Picture, ...] = ()
    claims: tuple[Claim, ...]
    quick: bool = False
    as_published: bool = False
    seconds: float = 0.0
    environment: Environment | None = None


def claim(statement: str, holds: bool, evidence: str) -> Claim:
    """A claim, judged by whether it ``holds`` in our figures."""
    return Claim(
        statement=statement, verdict="confirmed" if holds else "refuted", evidence=evidence
    )


def table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1
) -> Table:
    """A table of cells that are Markdown already."""
    return Table(
        title=title, header=tuple(header), rows=tuple(tuple(row) for row in rows), texts=texts
    )
