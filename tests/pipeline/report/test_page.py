"""The page of a result: one file, nothing fetched, whatever the names in it are."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
import vl_convert
from page_factory import HOSTILE, PAGES, change, comparison, full_report, inner, profile
from report_factory import (
    make_gate,
    make_optimize,
    make_output,
    make_plan,
    make_report,
    make_site,
    make_spectra,
)

from compress_onnx.graph_passes.errors import MissingDependencyError
from compress_onnx.pipeline.report.page import (
    changes_page,
    comparison_page,
    is_page_of_ours,
    render,
    report_page,
    write_page,
)
from compress_onnx.pipeline.report.page.blocks import Chart, Column, Page, Section, Table
from compress_onnx.pipeline.results import DepthError

LIMIT_BYTES = 2_000_000


class Elements(HTMLParser):
    """The elements of a page, with their attributes and the text inside."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, _tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.texts.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


@pytest.mark.parametrize("kind", PAGES)
def test_a_page_is_one_small_file_that_fetches_nothing(tmp_path, kind):
    path = tmp_path / "report.html"
    write_page(path, PAGES[kind]())
    assert path.stat().st_size < LIMIT_BYTES
    assert is_page_of_ours(path)
    page = Elements(path.read_text(encoding="utf-8"))
    for tag, attributes in page.found:
        assert not {"src", "srcset", "data", "action"} & attributes.keys(), tag
        assert attributes.get("href", "#").startswith("#")
    assert page.named("link") == []


@pytest.mark.parametrize("kind", PAGES)
def test_only_the_scripts_that_were_written_here_may_run(kind):
    page = Elements(render.rendered(PAGES[kind]()))
    policy = next(a["content"] for a in page.named("meta") if "http-equiv" in a)
    assert "default-src 'none'" in policy
    for attributes, script in zip(page.named("script"), page.scripts, strict=True):
        if attributes.get("type") == "application/json":
            json.loads(script)
            continue
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "unsafe" not in policy.replace("style-src 'unsafe-inline'", "")


@pytest.mark.parametrize("kind", ["run", "optimize", "sweep", "translation", "validate", "compare"])
def test_vega_lite_draws_every_chart(kind):
    charts = [b for s in PAGES[kind]().shown for b in s.blocks if isinstance(b, Chart)]
    assert charts
    for chart in charts:
        svg = vl_convert.vegalite_to_svg({**chart.spec, "width": 600})
        assert "<path" in svg, chart.title


def test_the_verdict_comes_first_and_names_what_failed():
    failed = make_gate(value=0.7, passed=False)
    page = report_page(make_report(gates=(failed,)))
    assert page.state == "failed"
    assert "cosine ≥ 0.84: 0.7" in page.verdict
    text = "".join(Elements(render.rendered(page, pictures=False)).texts)
    assert text.index("Failed") < text.index("Before and after")
    assert report_page(make_report()).verdict.startswith("Passed: 1 limit held. 0.766× the file")
    assert report_page(make_report(gates=())).state == "told"


def test_two_graphs_agree_or_part():
    outputs = tuple(make_output(outside=number) for number in (0, 3))
    validation = make_report().validation
    for found, state in ((outputs[:1], "passed"), (outputs, "failed")):
        report = comparison(gates=(), validation=validation.model_copy(update={"outputs": found}))
        assert comparison_page(report, "x").state == state
    assert "3 numbers are beyond" in comparison_page(report, "x").verdict
    assert comparison_page(comparison(gates=()), "x").state == "told"


def test_a_sweep_names_its_best_and_a_translation_its_bleu():
    assert "5 variants; the highest cosine is 0.5000, of svd at 50%" in PAGES["sweep"]().verdict
    text = "".join(Elements(render.rendered(PAGES["sweep"](), pictures=False)).texts)
    assert "nothing | to gain" in text
    assert "BLEU 20.00 → 20.00" in PAGES["translation"]().verdict


def test_what_became_worse_comes_first():
    page = changes_page("minilm", [change("recall", "same"), change()])
    assert page.state == "failed"
    assert page.verdict == "1 of 2 quantities became worse: cosine."
    assert [row[0] for row in page.sections[0].blocks[0].rows] == ["cosine", "recall"]
    assert changes_page("minilm", [change("recall", "same")]).state == "passed"


def section(page, title="Along the depth"):
    return next((section for section in page.shown if section.title == title), None)


@pytest.mark.parametrize("kind", ["run", "optimize"])
def test_errors_along_the_depth_are_drawn_and_in_a_table(kind):
    chart, table = section(PAGES[kind]()).blocks
    rows = chart.spec["data"]["values"]
    assert len(rows) == len(table.rows) == 6 * 5 * 4
    (points,) = chart.spec["layer"]
    scale = points["encoding"]["y"]["scale"]
    assert scale["type"] == "log"
    # Of a value that is equal the tooltip says so; it is drawn where the axis begins.
    assert (rows[0]["error"], rows[0]["drawn"]) == (0.0, scale["domainMin"])
    assert 0 < scale["domainMin"] < min(row["error"] for row in rows[1:])
    assert {"node", "module", "error"} <= {one["field"] for one in points["encoding"]["tooltip"]}
    assert table.cells[1][2].text == "LayerNormalization"


def test_without_a_profile_there_is_no_section_and_without_figures_a_reason():
    assert section(report_page(make_report())) is None
    unmeasured = profile(values=(), samples=0, unmeasured="both models take 5 GB")
    found = section(report_page(make_report(depth=unmeasured)))
    assert found.texts == ["Not measured: both models take 5 GB."]
    assert not found.blocks
    incomparable = DepthError(tensor="y", operator="Add", module="", error=None)
    (table,) = section(report_page(make_report(depth=profile(values=(incomparable,))))).blocks
    assert isinstance(table, Table)


def test_two_reports_have_one_picture_and_a_row_a_value():
    one, other = profile(), profile(3.0)
    other = other.model_copy(update={"values": other.values[1:]})
    chart, table = section(changes_page("x", [], "", {"base": one, "now": other})).blocks
    assert {row["model"] for row in chart.spec["data"]["values"]} == {"base", "now"}
    assert [column.title for column in table.columns][-2:] == ["base", "now"]
    assert len(table.rows) == len(one.values)
    assert table.rows[0][-2:] == (0.0, None)
    assert table.rows[5][-1] == pytest.approx(3 * table.rows[5][-2])


def test_one_profile_is_no_comparison():
    unmeasured = profile(values=(), unmeasured="too large")
    for other, why in ((None, "its report has none"), (unmeasured, "too large")):
        found = section(changes_page("x", [], "", {"base": other, "now": profile()}))
        assert found.texts == [f"No two profiles to compare: base, {why}."]
        assert not found.blocks
    assert section(changes_page("x", [], "", {"base": None, "now": None})) is None


def test_a_sweep_says_why_it_has_none():
    assert "chooses no variant" in section(PAGES["sweep"](), "Variants").texts[0]


def test_hostile_names_stay_text(tmp_path):
    plan = make_plan(sites=(make_site(HOSTILE, HOSTILE),))
    report = full_report().model_copy(
        update={
            "name": HOSTILE,
            "plan": plan,
            "notes": (HOSTILE,),
            "command": HOSTILE,
            "depth": profile(name=HOSTILE, origin=HOSTILE),
        }
    )
    report = report.model_copy(update={"optimize": make_optimize(winner=HOSTILE)})
    hostile = {
        "run": report_page(report, make_spectra(plan)),
        "validate": comparison_page(comparison(inside=inner(HOSTILE)), HOSTILE, HOSTILE),
        "compare": changes_page(
            HOSTILE,
            [change(HOSTILE)],
            HOSTILE,
            {"base": profile(name=HOSTILE), "now": profile(2.0, HOSTILE)},
        ),
    }
    for kind, page in hostile.items():
        plain = Elements(render.rendered(PAGES[kind]()))
        found = Elements(render.rendered(page))
        assert found.named("img") == []
        # What may run is what runs on any other page: the two scripts of ours.
        running = [s for a, s in zip(found.named("script"), found.scripts, strict=True) if not a]
        assert running == [
            s for a, s in zip(plain.named("script"), plain.scripts, strict=True) if not a
        ]
        assert HOSTILE in "".join(found.texts)


def test_numbers_are_sorted_by_value_and_shown_with_units():
    table = Table(
        "sizes", [Column("name"), Column("size", "{:.0f} B".format)], [("a", 9), ("b", None)]
    )
    page = Page("x", "y.", "told", [Section("S", (), [table]), Section("empty")])
    text = render.rendered(page)
    assert 'data-value="9.0">9 B</td>' in text
    assert "empty" not in text
    assert "–" in "".join(Elements(text).texts)


def test_without_the_library_there_are_tables_and_no_charts(monkeypatch, tmp_path):
    monkeypatch.setattr(render, "find_spec", lambda _: None)
    render._vega.cache_clear()
    assert "vl-convert-python" in render.why_no_charts()
    with pytest.raises(MissingDependencyError, match="vl-convert-python"):
        write_page(tmp_path / "page.html", PAGES["run"]())
    assert list(tmp_path.iterdir()) == []
    write_page(tmp_path / "page.html", PAGES["run"](), pictures=False)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r'role="img"', text)
    assert "Trials" in text
    assert "as a table" in text


def test_a_strangers_page_is_not_ours(tmp_path):
    (tmp_path / "page.html").write_text("<!doctype html><title>mine</title>")
    assert not is_page_of_ours(tmp_path / "page.html")
    assert not is_page_of_ours(tmp_path / "none.html")
