"""What the site takes from the code while it is built: commands, their options, keys of recipes.

Comments in pages are replaced, so that nothing is copied by hand and nothing goes stale:
``<!-- synopsis: compress -->``, ``<!-- help: compress -->``, ``<!-- options: compress -->`` and
``<!-- recipe keys -->``, each with the line behind it, which is for whoever reads the file itself.
A link to a file that the site does not have becomes plain text, a drawing in Mermaid a table: the
site needs no script from elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from compress_onnx.graph_passes.factorization import METHODS
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec, Selection, Shrinkage
from compress_onnx.pipeline import recipe
from compress_onnx.pipeline.cli import dispatch
from compress_onnx.pipeline.cli.app import app
from compress_onnx.pipeline.cli.parameters import Command, Parameter, panels, registered
from compress_onnx.pipeline.cli.parameters import synopsis as synopsis_of

DOCS = Path(__file__).parent
GENERATED = re.compile(
    r"<!-- (?:(synopsis|help|options): ([a-z ]+)|(recipe keys)) -->\n\*The site has [^\n]*\*$",
    re.MULTILINE,
)
"""A comment, and what stands in its place where a page is read outside the site."""

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)]*)?\)")
_MERMAID = re.compile(r"```mermaid\n(.*?)```", re.DOTALL)
_ROOM = re.compile(r"(\w+)\[\"([^\"]+)\"\]")
_ROLE = re.compile(r":\w+:`~?([^`]+)`")
_SITE = {".md", ".png", ".svg", ".json"}


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:  # noqa: ANN401
    """Fill ``markdown`` in; called by MkDocs for each page."""
    here = (DOCS / page.file.src_uri).parent
    text = _MERMAID.sub(_rooms, filled(markdown))
    return _LINK.sub(lambda link: _linked(link, here), text)


def filled(markdown: str) -> str:
    """``markdown`` with what its comments ask for.

    Raises:
        KeyError: there is no such command.
    """

    def replaced(found: re.Match[str]) -> str:
        kind, name, whole = found.groups()
        if whole is not None:
            return "\n".join(recipe_keys())
        return "\n".join(_OF_A_COMMAND[kind](name))

    return GENERATED.sub(replaced, markdown)


@cache
def commands() -> dict[str, Command]:
    """The function of every command, by what is typed for it, such as ``cache info``."""
    assert dispatch  # it has registered them
    return dict(registered(app))


def synopsis(name: str) -> Iterator[str]:
    """How the command is typed."""
    yield from ("```text", synopsis_of(name, commands()[name]), "```")


def help_of(name: str) -> Iterator[str]:
    """What ``--help`` says."""
    yield _cleaned(commands()[name].__doc__ or "")


def options(name: str) -> Iterator[str]:
    """Tables of arguments and options, one for each panel of ``--help``."""
    by_panel = panels(commands()[name])
    if not by_panel:
        yield "None."
    for title, members in by_panel.items():
        yield from (f"**{title}**", "")
        yield from ("| name | value | default | meaning |", "|:---|:---|:---|:---|")
        for parameter in members:
            names = ", ".join(f"`{one}`" for one in parameter.names)
            told = _cell(parameter.help)
            yield f"| {names} | {_code(parameter.value)} | {_usual(parameter)} | {told} |"
        yield ""


def _usual(parameter: Parameter) -> str:
    return "required" if parameter.required else _code(parameter.usual)


def all_commands() -> Iterator[str]:
    """A table of the commands, each with its first line of help."""
    yield from ("| command | what it does |", "|:---|:---|")
    for name, command in commands().items():
        first = " ".join((command.__doc__ or "").split("\n\n")[0].split())
        yield f"| [`{name}`]({name.split()[0]}.md) | {_cell(first)} |"


def recipe_keys() -> Iterator[str]:
    """Every part of a recipe, with its keys, types and defaults."""
    for model in _models(recipe.Recipe):
        about, of_keys = _documented(model)
        if model is recipe.Compression:
            about = _documented(CompressionSpec)[0]
        yield from (f"## {_title(model)} {{ #{model.__name__.lower()} }}", "", about, "")
        yield from ("| key | value | default | meaning |", "|:---|:---|:---|:---|")
        for name, field in model.model_fields.items():
            told = _cell(of_keys.get(name, "")).replace("None", "null")
            value = _type(field.annotation, field.metadata)
            yield f"| `{name}` | {value} | {_default(field)} | {told} |"
        yield ""
    yield from ("## Methods { #methods }", "", "`method: {name: …}`, with keys of its own:", "")
    yield from ("| name | meaning |", "|:---|:---|")
    for name, method in METHODS.items():
        about = _cell((method.__doc__ or name).splitlines()[0]).removeprefix(f"{name}: ")
        yield f"| `{name}` | {about} |"


def _documented(model: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """What a docstring says of the whole, and of each key."""
    about, of_keys = list[str](), dict[str, str]()
    for paragraph in re.split(r"\n\s*\n", _cleaned(model.__doc__ or "")):
        if paragraph.startswith("Attributes:"):
            of_keys = _attributes(paragraph)
        else:
            about.append(paragraph)
    return "\n\n".join(about), of_keys


_OF_A_COMMAND: Mapping[str, Callable[[str], Iterator[str]]] = {
    "synopsis": synopsis,
    "help": help_of,
    "options": options,
}


def _code(text: str) -> str:
    return f"`{_cell(text)}`" if text else ""


def _cell(text: str) -> str:
    return " ".join(_cleaned(text).split()).replace("|", "\\|")


def _cleaned(text: str) -> str:
    """A docstring as Markdown: no margin, single backticks, names instead of roles."""
    lines = text.strip().splitlines()
    margin = min((len(n) - len(n.lstrip()) for n in lines[1:] if n.strip()), default=0)
    whole = "\n".join([*lines[:1], *(line[margin:] for line in lines[1:])])
    return _ROLE.sub(r"`\1`", whole.replace("``", "`"))


def _attributes(paragraph: str) -> dict[str, str]:
    """Names and texts of a docstring's section of attributes."""
    found: dict[str, str] = {}
    name = ""
    for line in paragraph.splitlines()[1:]:
        start = re.match(r" {4}(\w+): (.*)", line)
        if start:
            name, found[start[1]] = start[1], start[2]
        elif name:
            found[name] += f" {line.strip()}"
    return found


def _models(model: type[BaseModel]) -> dict[type[BaseModel], None]:
    """``model`` and all models that its fields are of, each once."""
    found: dict[type[BaseModel], None] = {model: None}
    for field in model.model_fields.values():
        for part in _parts(field.annotation):
            if part not in found:
                found |= {one: None for one in _models(part) if one not in found}
    return found


def _parts(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _parts(argument)


_TITLES = {
    recipe.Recipe: "Recipe",
    recipe.SourceSpec: "source",
    recipe.Gate: "gates",
    recipe.BenchmarkSpec: "benchmark",
    recipe.OptimizeSpec: "compression: optimize",
    recipe.Compression: "compression",
    recipe.RecoverySpec: "recovery",
    MethodSpec: "compression: method",
    Selection: "compression: select",
    Shrinkage: "compression: shrinkage",
}


def _title(model: type[BaseModel]) -> str:
    kind = model.model_fields.get("kind")
    if model in _TITLES or kind is None:
        return _TITLES.get(model, model.__name__)
    what = "metric" if model.__name__.endswith("Metric") else "data"
    return f"{what}, kind {get_args(kind.annotation)[0]}"


def _type(annotation: Any, metadata: Iterable[Any] = ()) -> str:  # noqa: ANN401
    """A type in words, models as links to their sections."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{_title(annotation)}](#{annotation.__name__.lower()})"
    if origin in _COMPOSED:
        return _COMPOSED[origin](arguments)
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits = [
        f"{sign} {getattr(one, name)}"
        for one in metadata
        for name, sign in signs.items()
        if getattr(one, name, None) is not None
    ]
    return " ".join([_WORDS.get(annotation, "value"), *limits])


def _one_of(arguments: tuple[Any, ...]) -> str:
    kinds = [one for one in arguments if one is not NoneType]
    if len(kinds) > 2 and all(isinstance(k, type) and issubclass(k, BaseModel) for k in kinds):
        links = [f"[{_title(k).rpartition(' ')[2]}](#{k.__name__.lower()})" for k in kinds]
        return f"{_title(kinds[0]).partition(',')[0]} of the kind " + ", ".join(links)
    return " or ".join(map(_type, kinds))


_COMPOSED: Mapping[Any, Callable[[tuple[Any, ...]], str]] = {
    Annotated: lambda arguments: _type(arguments[0], arguments[1:]),
    Literal: lambda arguments: ", ".join(f"`{one}`" for one in arguments),
    Union: _one_of,
    UnionType: _one_of,
    tuple: lambda arguments: f"list of {_type(arguments[0])}",
    list: lambda arguments: f"list of {_type(arguments[0])}",
    dict: lambda arguments: f"{_type(arguments[1])}, by name",
}
_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if field.is_required() or default is PydanticUndefined:
        return "required"
    if default is None or default in ((), {}):
        return ""
    if isinstance(default, BaseModel):
        return "its defaults"
    if isinstance(default, tuple):
        return "`" + ", ".join(map(str, default)) + "`"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _rooms(drawing: re.Match[str]) -> str:
    """The boxes of a flowchart as a table, from top to bottom."""
    lines = ["| room | what it answers |", "|:---|:---|"]
    for name, label in _ROOM.findall(drawing[1]):
        title, _, about = label.partition("<br/>")
        lines.append(f"| `{title or name}` | {about} |")
    return "\n".join(lines)


def _linked(link: re.Match[str], here: Path) -> str:
    """The link, or its text alone where the site has no such page."""
    text, target = link[1], link[2]
    if "://" in target or target.startswith("mailto:"):
        return link[0]
    place = (here / target).resolve()
    if place.is_relative_to(DOCS) and place.suffix in _SITE and "studies" not in place.parts:
        return link[0]
    return text
