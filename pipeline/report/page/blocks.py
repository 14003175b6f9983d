"""What a page is made of. Texts are plain: whatever they hold, the template shows it as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from compress_onnx.pipeline.report import formats
from compress_onnx.pipeline.report.markdown import printable

Scalar = str | int | float | None
State = Literal["passed", "failed", "told"]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: its head.
        show: how a number of it is written; without, its cells are texts.
        is_name: its texts are names out of a model, and are shown as code.
    """

    title: str
    show: Callable[[Any], str] | None = None
    is_name: bool = False


@dataclass(frozen=True)
class Cell:
    """What is shown, and the number that it is sorted by; None where it is sorted as a text."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """A table that can be sorted, and filtered where it is long.

    Attributes:
        caption: what its rows are.
        columns: their heads and formats.
        rows: plain values; None is what there is no figure of.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Scalar]]

    @property
    def cells(self) -> list[list[Cell]]:
        """The rows as they are shown."""
        return [
            [_cell(column, value) for column, value in zip(self.columns, row, strict=True)]
            for row in self.rows
        ]


@dataclass(frozen=True)
class Chart:
    """A picture, and the same figures as a table for whoever cannot see it.

    Attributes:
        title: what it shows.
        description: what a reader should see in it, in a sentence.
        spec: Vega-Lite, with its data.
        table: of the same figures; None where a table of the page has them.
    """

    title: str
    description: str
    spec: Mapping[str, Any]
    table: Table | None = None


@dataclass(frozen=True)
class Section:
    """A part of a page: sentences, then tables and charts, then lines to copy."""

    title: str
    texts: Sequence[str] = ()
    blocks: Sequence[Table | Chart] = ()
    commands: Sequence[str] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.texts or self.blocks or self.commands)


@dataclass(frozen=True)
class Page:
    """What :func:`pipeline.report.page.render.write_page` writes.

    Attributes:
        title: what it is about.
        verdict: the answer, in a sentence.
        state: whether limits held; ``told`` where there were none.
        sections: those that are empty are left out.
    """

    title: str
    verdict: str
    state: State
    sections: Sequence[Section]

    @property
    def shown(self) -> list[Section]:
        """The sections with something in them."""
        return [section for section in self.sections if not section.is_empty]


def _cell(column: Column, value: Scalar) -> Cell:
    if value is None:
        return Cell(formats.MISSING)
    if column.show is None or isinstance(value, str):
        return Cell(printable(value))
    return Cell(column.show(value), float(value))
