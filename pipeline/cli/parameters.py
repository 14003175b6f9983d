"""Commands and what can be given to them, as their functions declare it: for help and the site.

Read from the signatures, not from the parser, so that both say the same and in the same order.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

Command = Callable[..., None]

ARGUMENTS, OPTIONS, OUTPUT, ADVANCED = "Arguments", "Options", "Output", "Advanced"
_PLACES = {ARGUMENTS: 0, OUTPUT: 2, ADVANCED: 3}

_PANELS: Mapping[str, str] = {
    "Budget": "params bytes flops latency rank max-drop",
    "Data": "calibration held-out validation inputs domain mask broader",
    "Method": "method allocation shrinkage store recover",
    "Limits": "gate atol rtol tolerance preset",
    "Runs": "provider batch length size warmup iterations loads optimization runtime",
    OUTPUT: "output json html junit markdown log report force",
    ADVANCED: "allow-code allow-larger backend batch-size external-data keep-metadata no-cache "
    "no-benchmark rank-multiple sequential siblings threads",
}
"""Which panel an option stands in, where its command has no group for it. Advanced ones always do:
``--help`` only lists them."""

_PANEL_OF = {f"--{name}": panel for panel, names in _PANELS.items() for name in names.split()}


@dataclass(frozen=True)
class Parameter:
    """An argument or option of a command, as its function declares it."""

    names: tuple[str, ...]
    is_option: bool
    value: str
    default: object
    help: str
    panel: str

    @property
    def required(self) -> bool:
        """Whether the command does nothing without."""
        return self.default is inspect.Parameter.empty

    @property
    def usual(self) -> str:
        """The default in words; empty where there is none, or the help says it."""
        if self.required or self.default is None or self.default is False:
            return ""
        return "yes" if self.default is True else str(self.default)


def registered(group: typer.Typer, prefix: str = "") -> Iterator[tuple[str, Command]]:
    """The function of every command, by what is typed for it, such as ``cache info``."""
    for command in group.registered_commands:
        assert command.callback is not None
        yield prefix + (command.name or command.callback.__name__), command.callback
    for part in group.registered_groups:
        assert part.typer_instance is not None
        yield from registered(part.typer_instance, f"{prefix}{part.name} ")


def parameters(command: Command) -> list[Parameter]:
    """What can be given to ``command``."""
    hints = get_type_hints(command, include_extras=True)
    signature = inspect.signature(command).parameters
    return [_parameter(name, hints[name], given.default) for name, given in signature.items()]


def panels(command: Command) -> dict[str, list[Parameter]]:
    """What can be given to ``command``, by panel; outputs and advanced options come last."""
    found: dict[str, list[Parameter]] = {}
    for parameter in sorted(parameters(command), key=lambda one: _PLACES.get(one.panel, 1)):
        found.setdefault(parameter.panel, []).append(parameter)
    return found


def synopsis(name: str, command: Command) -> str:
    """How ``command`` is typed."""
    words, given = ["compress-onnx", name], parameters(command)
    for parameter in given:
        if not parameter.is_option:
            words.append(parameter.names[0] if parameter.required else f"[{parameter.names[0]}]")
        elif parameter.required:
            words.append(f"{max(parameter.names, key=len)} {parameter.value}")
    if any(one.is_option and not one.required for one in given):
        words.append("[OPTIONS]")
    return " ".join(words)


def _parameter(name: str, hint: Any, default: object) -> Parameter:  # noqa: ANN401
    kind, *rest = get_args(hint)
    info: Any = next(one for one in rest if isinstance(one, OptionInfo | ArgumentInfo))
    is_option = isinstance(info, OptionInfo)
    # In an annotation, the first name stands where a default would.
    given = [n for n in (info.default, *(info.param_decls or ())) if isinstance(n, str)]
    flag = kind is bool or kind == bool | None
    if not given:
        dashed = "--" + name.strip("_").replace("_", "-")
        given = [f"{dashed}/--no-{dashed[2:]}" if flag and default is not False else dashed]
    names = tuple(part for one in given for part in one.split("/"))
    value = str(info.metavar or ("" if flag else _value(kind)))
    if not is_option:
        names, value = (str(info.metavar or name.removesuffix("_path").upper()),), ""
    panel = _panel(names, info.rich_help_panel) if is_option else ARGUMENTS
    return Parameter(names, is_option, value, default, info.help or "", panel)


def _panel(names: tuple[str, ...], group: str | None) -> str:
    by_name = next((_PANEL_OF[name] for name in names if name in _PANEL_OF), OPTIONS)
    return by_name if by_name == ADVANCED else group or by_name


def _value(kind: Any) -> str:  # noqa: ANN401
    """What is typed for a value of this type."""
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    inner = [one for one in get_args(kind) if one is not NoneType]
    if inner:
        return _value(inner[0])
    return {Path: "PATH", int: "N", float: "X"}.get(kind, "TEXT")
