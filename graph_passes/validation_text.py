"""One readable line out of a pydantic error: the key, what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from pydantic import BaseModel, ValidationError


def first_problem(error: ValidationError, document: type[BaseModel] | None = None) -> str:
    """Name the first offending key and the trouble, e.g. ``gates.0.mim: unknown key``.

    Args:
        error: of the validation.
        document: what was validated; its keys, at any depth, are suggested for unknown ones.
    """
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"]) or "the document"
    text = {"extra_forbidden": "unknown key", "missing": "this key is required"}.get(
        problem["type"], problem["msg"]
    )
    if problem["type"] == "literal_error":
        text = f"{problem['input']!r} is none of {problem['ctx']['expected']}"
    if problem["type"] == "extra_forbidden" and document is not None:
        text += suggestion(str(problem["loc"][-1]), _keys(document))
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{key}: {text}{more}"


def suggestion(wrong: str, known: Iterable[str]) -> str:
    """What may have been meant, to stand behind what is wrong; empty where nothing is like it."""
    near = get_close_matches(wrong, sorted(set(known)), n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def _keys(document: type[BaseModel]) -> set[str]:
    schema = document.model_json_schema()
    parts = [schema, *schema.get("$defs", {}).values()]
    return {key for part in parts for key in part.get("properties", {})}
