"""Options in groups: a command takes dataclasses, the command line shows their fields.

    @dataclass(frozen=True)
    class Budget:
        \"\"\"Budget.\"\"\"
        params: Annotated[float | None, typer.Option(...)] = None

    @grouped
    def compress(model: Model, budget: Budget) -> None: ...

The first line of a group's docstring is the title of its panel in ``--help``; advanced options have
one of their own (:mod:`.parameters`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

from typer.models import OptionInfo


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the fields of its groups as options of its own."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {n: hint for n, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            parameters += _options(groups[name])
        else:
            parameters.append(parameter.replace(annotation=hints[name]))
    # What has a default comes last, whatever the order of the groups.
    parameters.sort(key=lambda parameter: parameter.default is not inspect.Parameter.empty)

    @functools.wraps(command)
    def run(**values: Any) -> None:  # noqa: ANN401
        made = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **made)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _options(group: Any) -> Iterator[inspect.Parameter]:  # noqa: ANN401
    """The fields of ``group`` as parameters, in its panel."""
    title = (group.__doc__ or group.__name__).splitlines()[0].rstrip(".")
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        hint = hints[field.name]
        option = next(m for m in hint.__metadata__ if isinstance(m, OptionInfo))
        shown = copy(option)
        shown.rich_help_panel = shown.rich_help_panel or title
        yield inspect.Parameter(
            field.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=Annotated[hint.__origin__, shown],
        )
