"""What the commands say about a plan: parameters and bytes apart, with the right sign."""

from __future__ import annotations

import io

import pytest
from report_factory import make_plan, make_site
from rich.console import Console

from compress_onnx.pipeline.cli import console
from compress_onnx.pipeline.cli.console import print_plan, print_size
from compress_onnx.pipeline.results import SizeReport


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    return at_width(160, monkeypatch)


def at_width(columns: int, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    text = io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=text, width=columns))
    return text


def whole_model(printed: io.StringIO) -> str:
    return next(line for line in printed.getvalue().splitlines() if "whole model" in line)


def test_a_model_that_shrinks(printed: io.StringIO) -> None:
    print_plan(make_plan(sites=(make_site(parameters_before=1000, parameters_after=400),)))
    assert whole_model(printed).endswith(": 600 fewer than before")
    assert "whole file" not in printed.getvalue()


def test_a_model_that_grows_does_not_lose(printed: io.StringIO) -> None:
    print_plan(make_plan(sites=(make_site(parameters_before=400, parameters_after=1400),)))
    assert whole_model(printed).endswith(": 1,000 more than before")
    assert "-1,000" not in printed.getvalue()


def test_a_model_that_stays(printed: io.StringIO) -> None:
    print_plan(make_plan(sites=(make_site(parameters_before=400, parameters_after=400),)))
    assert whole_model(printed).endswith(": as many as before")


def test_rounded_factors_are_named(printed: io.StringIO) -> None:
    site = make_site(parameters_before=1000, parameters_after=400, rank=10, store="int8")
    print_plan(make_plan(sites=(site,)))
    # 20 of the parameters that remain are scales.
    assert whole_model(printed).endswith(": 580 fewer than before; factors are stored as int8")


def test_bytes_are_those_of_the_files(printed: io.StringIO) -> None:
    print_size(
        SizeReport(
            reference_bytes=4_000_000,
            candidate_bytes=1_000_000,
            reference_parameters=1_000_000,
            candidate_parameters=1_100_000,
        )
    )
    assert printed.getvalue() == (
        "files 4.00 MB -> 1.00 MB (0.250×), parameters 1,000,000 -> 1,100,000 (1.10×)\n"
    )


@pytest.mark.parametrize("columns", [80, 100, 130, 200])
def test_site_names_break_between_their_parts_only(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = at_width(columns, monkeypatch)
    print_plan(make_plan(layers=2))
    header, *rows = text.getvalue().splitlines()
    width = header.index("shape")
    found = "".join(row[:width].strip() for row in rows)
    for layer in (0, 1):
        assert f"encoder.layer.{layer}.attention.output.dense" in found
    endings = {row[:width].strip() for row in rows[: rows.index(skipped(rows))]} - {""}
    assert all(part.endswith((".", "query", "key", "value", "dense")) for part in endings), endings


def skipped(rows: list[str]) -> str:
    return next(row for row in rows if row.startswith("skipped"))


def test_names_are_no_markup(printed: io.StringIO) -> None:
    print_plan(make_plan(sites=(make_site("layer.[bold]x[/bold]"),)))
    assert "layer.[bold]x[/bold]" in printed.getvalue()
