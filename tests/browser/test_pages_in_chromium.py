"""Pages in a browser: they open, sort, filter and point, in both themes, on phones and screens."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from page_factory import HOSTILE, PAGES, comparison, inner
from playwright.sync_api import expect, sync_playwright

from compress_onnx.pipeline.report.page import comparison_page, write_page

CHROMIUM = shutil.which("chromium")
SIZES = {"phone": (360, 740), "screen": (1440, 900)}
SHOTS = os.environ.get("COMPRESS_ONNX_SCREENSHOTS")
"""A folder to keep pictures in."""

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium"),
    pytest.mark.xdist_group("browser"),
]


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("pages")
    for kind, page in PAGES.items():
        write_page(found / f"{kind}.html", page())
    write_page(
        found / "hostile.html", comparison_page(comparison(inside=inner(HOSTILE)), HOSTILE, HOSTILE)
    )
    return found


@pytest.fixture
def show(browser, folder):
    """Opens a page, and fails where it complains or asks for anything."""
    opened = []

    def show(kind, size="screen", theme="light"):
        width, height = SIZES[size]
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=theme
        )
        page, complaints = context.new_page(), []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append("a dialog"), dialog.dismiss()))
        page.on(
            "request",
            lambda request: request.url.startswith("file:") or complaints.append(request.url),
        )
        page.goto((folder / f"{kind}.html").as_uri())
        for chart in page.locator("[data-chart]").all():
            chart.locator("svg").wait_for()
        opened.append((context, complaints))
        return page

    yield show
    for context, complaints in opened:
        context.close()
        assert complaints == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [*PAGES, "hostile"])
def test_it_opens_fits_and_can_be_read(show, kind, size, theme):
    page = show(kind, size, theme)
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{kind}-{size}-{theme}.png", full_page=True)


def test_the_theme_changes_with_its_charts(show):
    page = show("run")
    before = page.locator("[data-chart] svg").first.inner_html()
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    expect(page.locator("[data-chart] svg").first).not_to_have_js_property("innerHTML", before)
    page.get_by_role("button", name="Light").wait_for()


def column(page, table, place):
    return page.locator(f"{table} tbody tr td:nth-child({place})").all_inner_texts()


def table_named(page, name):
    return "#" + page.locator(
        "table", has=page.locator("caption", has_text=name)
    ).first.get_attribute("id")


def test_a_table_is_sorted_by_its_numbers_by_keyboard_too(show):
    page = show("run")
    table = table_named(page, "Trials")
    head = page.locator(f"{table} th", has_text="speed-up")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(page, table, 5) == ["0.900×", "1.00×", "2.10×", "2.80×", "–", "–"]
    head.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    # What has no figure stays at the end.
    assert column(page, table, 5) == ["2.80×", "2.10×", "1.00×", "0.900×", "–", "–"]


def test_a_long_table_is_filtered(show):
    page = show("run")
    table = table_named(page, "Linear layers")
    box = page.locator(f"[data-filter={table[1:]}]")
    box.fill("LAYER.3.attention.QUERY")
    assert page.locator(f"{table} tbody tr:visible").count() == 1
    assert page.get_by_role("status").filter(has_text="1 of 36 rows").count() == 1
    box.fill("")
    assert page.locator(f"{table} tbody tr:visible").count() == 36


def test_a_name_is_copied_without_breaks(show):
    page = show("run")
    table = table_named(page, "Linear layers")
    name = page.locator(f"{table} tbody code").first
    assert name.text_content() == "encoder.layer.0.attention.query"
    assert name.locator("wbr").count() > 2


def test_a_mark_tells_what_it_is(show):
    page = show("run")
    chart = page.locator(".picture[aria-label^='What was tried']")
    # The winner's mark: the last that is drawn is on top.
    chart.locator("svg .mark-symbol.layer_2_marks path").last.hover()
    page.locator("#vg-tooltip-element.visible").wait_for()
    assert "trial" in page.locator("#vg-tooltip-element").inner_text()


def test_another_site_is_picked(show):
    page = show("run")
    figure = page.locator("figure", has_text="Error against rank")
    before = figure.locator("svg").inner_html()
    figure.get_by_role("combobox").select_option(label="encoder.layer.5.output.dense")
    expect(figure.locator("svg")).not_to_have_js_property("innerHTML", before)


def test_it_prints_with_everything_unfolded(show):
    page = show("run")
    assert page.locator("details[open]").count() == 0
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden()


def test_a_hostile_name_runs_nothing(show):
    page = show("hostile")
    assert HOSTILE in page.locator("h1").text_content()
    assert page.locator("img").count() == 0
