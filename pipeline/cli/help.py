"""``--help`` on one screen, and all of it by ``compress-onnx help COMMAND``.

The screen has the first paragraph of a command's docstring, its examples (the paragraphs that are
one line of code), and a line an option, cut where it does not fit. Advanced options are only named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Annotated, Any

import typer
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markdown import Markdown
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.validation_text import suggestion
from compress_onnx.pipeline.cli.console import console_for
from compress_onnx.pipeline.cli.parameters import (
    ADVANCED,
    Command,
    Parameter,
    panels,
    registered,
    synopsis,
)

_WIDTH = 100
_EXAMPLE = re.compile(r"^`(compress-onnx [^`]+)`$")
_LONGEST_NAMES = 28
_CLAUSE_END = re.compile(r"(?=\. |[:;] | \(| \[)")


class _Brief:
    """One line of a text: all of it, or as many of its clauses as fit."""

    def __init__(self, text: str, usual: str = "") -> None:
        told = _plain(text).removesuffix(".")
        ends = [end.start() for end in _CLAUSE_END.finditer(told) if _closed(told[: end.start()])]
        default = f" [default: {usual}]" if usual else ""
        self._whole = (told + default, told)
        self._clauses = [told[:end] for end in reversed(ends)]

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        room = options.max_width
        whole = (text for text in self._whole if cell_len(text) <= room)
        # A clause that leaves half of the line empty says less than what fits of the whole.
        clauses = (text for text in self._clauses if room // 2 <= cell_len(text) <= room)
        line = next(chain(whole, clauses), self._whole[1])
        yield Text(line, no_wrap=True, overflow="ellipsis")

    def __rich_measure__(self, _console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, options.max_width)


_Row = tuple[str, _Brief]
"""What is typed, and what is told of it."""


class OneScreen(TyperCommand):
    """A command whose ``--help`` fits a screen."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401, ARG002
        """Print it."""
        assert self.callback is not None
        _print(_screen(ctx.command_path.partition(" ")[2], self.callback))


class Overview(TyperGroup):
    """The program, or a command with others below it: a line for each of these."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401, ARG002
        """Print it."""
        _print(_overview(self, ctx.command_path))


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""

    def help_(
        command: Annotated[
            list[str] | None, typer.Argument(help="Such as: compress, or cache info.")
        ] = None,
    ) -> None:
        """Tell all about a command: how it works, and every option in full.

        `compress-onnx help optimize`
        """
        known = dict(registered(app))
        wanted = " ".join(command or ["help"])
        found = [name for name in known if name == wanted or name.startswith(f"{wanted} ")]
        if not found:
            raise RequestError(f"there is no command {wanted!r}{suggestion(wanted, known)}")
        for name in found:
            _print(_whole(name, known[name]))

    app.command("help", cls=OneScreen)(help_)


def _print(parts: Iterable[RenderableType]) -> None:
    console = console_for(stderr=False)
    console.width = min(console.width, _WIDTH)
    for part in parts:
        console.print(part, highlight=False)


def _screen(name: str, command: Command) -> Iterator[RenderableType]:
    yield Text.assemble("Usage: ", (synopsis(name, command), "bold"))
    yield from _introduction(command.__doc__ or "")
    by_panel = panels(command)
    advanced = by_panel.pop(ADVANCED, [])
    yield _rows(_options(by_panel))
    if advanced:
        names = ", ".join(max(one.names, key=len) for one in advanced)
        yield Text.assemble((ADVANCED, "bold"), f" {names}")
    yield Text(f"In full: compress-onnx help {name}", style="dim")


def _overview(group: Overview, path: str) -> Iterator[RenderableType]:
    yield Text.assemble("Usage: ", (f"{path} [OPTIONS] COMMAND …", "bold"))
    yield from _introduction(group.help or "")
    about = {name: _paragraphs(one.help or "")[0] for name, one in group.commands.items()}
    yield _rows({"Commands": [(name, _Brief(first)) for name, first in about.items()]})
    if group.callback is not None:
        yield _rows(_options(panels(group.callback)))
    if group.epilog:
        yield Padding(Markdown(group.epilog), (1, 0, 0, 0))


def _whole(name: str, command: Command) -> Iterator[RenderableType]:
    yield Text.assemble("Usage: ", (synopsis(name, command), "bold"))
    for paragraph in _paragraphs(command.__doc__ or ""):
        yield Text("")
        yield Markdown(paragraph)
    for title, members in panels(command).items():
        yield Text(f"\n{title}", style="bold")
        for one in members:
            usual = f" [default: {one.usual}]" if one.usual else ""
            yield Text(f"  {_names(one)}", style="cyan")
            yield Padding(Text(f"{_plain(one.help)}{usual}"), (0, 0, 0, 8))


def _introduction(text: str) -> Iterator[RenderableType]:
    """The first paragraph, and the examples."""
    first, *others = _paragraphs(text)
    yield Padding(Text(_plain(first)), (1, 0))
    examples = [found[1] for text in others if (found := _EXAMPLE.match(text))]
    if examples:
        yield Padding(Text("\n".join(examples), style="green"), (0, 0, 1, 2))


def _rows(by_title: Mapping[str, Sequence[_Row]]) -> Table:
    """Names and what is told of each, below their titles."""
    names = [name for rows in by_title.values() for name, _ in rows]
    longest = max(map(cell_len, names), default=0) + 2
    width = max(min(longest, _LONGEST_NAMES + 2), *map(cell_len, by_title), 0)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=width, no_wrap=True, overflow="ellipsis")
    table.add_column()
    for title, rows in by_title.items():
        table.add_row(Text(title, style="bold"), "")
        for name, told in rows:
            table.add_row(Text(f"  {name}", style="cyan"), told)
    return table


def _options(by_panel: Mapping[str, Sequence[Parameter]]) -> dict[str, list[_Row]]:
    return {
        title: [(_names(one), _Brief(one.help, one.usual)) for one in members]
        for title, members in by_panel.items()
    }


def _names(parameter: Parameter) -> str:
    """What is typed: short name first, ``--[no-]x`` for a switch, and what stands behind it."""
    names = sorted(parameter.names, key=lambda name: name.startswith("--"))
    for name in names:
        if f"--no-{name[2:]}" in names:
            names = [f"--[no-]{name[2:]}"]
    return f"{', '.join(names)} {parameter.value}".rstrip()


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip())]


def _closed(text: str) -> bool:
    return text.count("(") == text.count(")") and text.count("[") == text.count("]")


def _plain(text: str) -> str:
    return text.replace("`", "")
