"""One readable line out of a pydantic error: the key, what is wrong with it."""

from __future__ import annotations

from pydantic import ValidationError


def first_problem(error: ValidationError) -> str:
    """Name the first offending key and the trouble, e.g. ``gates.0.mim: unknown key``."""
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"]) or "the document"
    text = {"extra_forbidden": "unknown key", "missing": "this key is required"}.get(
        problem["type"], problem["msg"]
    )
    if problem["type"] == "literal_error":
        text = f"{problem['input']!r} is none of {problem['ctx']['expected']}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{key}: {text}{more}"
