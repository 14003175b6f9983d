"""What continuous integration reads: JUnit's XML, GitHub's annotations and step summary."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from compress_onnx.pipeline.files.atomic import atomic_file
from compress_onnx.pipeline.results import Change, GateResult

SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"
_MARK = "compress-onnx"
_TABLE_HEAD = "| quantity | base | now | better is | verdict | by |"


def gate_line(gate: GateResult) -> str:
    """A gate and what became of it, in a line."""
    sign = "≥" if gate.limit == "min" else "≤"
    value = "not measured" if gate.value is None else f"{gate.value:.6g}"
    reason = f" ({gate.reason})" if gate.reason else ""
    return f"{gate.quantity} {sign} {gate.threshold:g}: {value}{reason}"


def change_line(change: Change) -> str:
    """A quantity in both reports, in a line."""
    return (
        f"{change.quantity}: {_number(change.base)} → {_number(change.candidate)} "
        f"({change.direction} is better; {change.test})"
    )


def gate_cases(gates: Sequence[GateResult]) -> dict[str, str | None]:
    """By gate, why it failed; None where it held."""
    return {gate_line(gate): None if gate.passed else gate_line(gate) for gate in gates}


def change_cases(found: Sequence[Change]) -> dict[str, str | None]:
    """By quantity, what became worse; None where nothing did."""
    return {one.quantity: change_line(one) if one.verdict == "worse" else None for one in found}


def write_junit(path: Path, name: str, cases: Mapping[str, str | None]) -> None:
    """Write a test suite: a case for each gate or quantity, with its failure.

    Raises:
        OutputError: ``path`` cannot be written.
    """
    failures = sum(failure is not None for failure in cases.values())
    suite = ElementTree.Element(
        "testsuite",
        name=f"{_MARK}: {name}",
        tests=str(len(cases)),
        failures=str(failures),
        errors="0",
    )
    for case, failure in cases.items():
        element = ElementTree.SubElement(suite, "testcase", classname=_MARK, name=case)
        if failure is not None:
            ElementTree.SubElement(element, "failure", message=failure)
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    with atomic_file(path) as temporary:
        ElementTree.ElementTree(suites).write(temporary, encoding="utf-8", xml_declaration=True)


def is_junit_of_ours(path: Path) -> bool:
    """Whether ``path`` is a file that :func:`write_junit` wrote."""
    try:
        return f'name="{_MARK}: ' in path.read_text(encoding="utf-8")[:500]
    except (OSError, UnicodeDecodeError):
        return False


def is_table_of_ours(path: Path) -> bool:
    """Whether ``path`` holds what :func:`changes_markdown` says."""
    try:
        return _TABLE_HEAD in path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def github_annotations(cases: Mapping[str, str | None]) -> Iterator[str]:
    """GitHub's workflow commands for what failed; nothing outside of GitHub Actions."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return
    for failure in filter(None, cases.values()):
        escaped = failure.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
        yield f"::error title={_MARK}::{escaped}"


def add_to_step_summary(markdown: str) -> None:
    """Append to the summary of GitHub's job; nothing where there is none."""
    if path := os.environ.get(SUMMARY_VARIABLE):
        with Path(path).open("a", encoding="utf-8") as summary:
            summary.write(markdown.rstrip("\n") + "\n")


def changes_markdown(name: str, found: Sequence[Change]) -> str:
    """A comparison of two reports, as a pull request shows it."""
    worse = [one for one in found if one.verdict == "worse"]
    better = [one for one in found if one.verdict == "better"]
    verdict = f"{len(worse)} of {len(found)} quantities became worse" if worse else "nothing worse"
    lines = [
        f"### `{name}`: {verdict}",
        "",
        _TABLE_HEAD,
        "|:---|---:|---:|:---|:---|:---|",
    ]
    rest = [one for one in found if one.verdict == "same"]
    for one in (*worse, *better, *rest):
        mark = {"worse": "**worse**", "better": "better", "same": "same"}[one.verdict]
        lines.append(
            f"| `{one.quantity}` | {_number(one.base)} | {_number(one.candidate)} "
            f"| {one.direction} "
            f"| {mark} | {one.test} |"
        )
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:.4g}"
