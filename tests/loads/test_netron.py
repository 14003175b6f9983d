"""A compressed model in the real Netron: beside a node stands what the file tells of it.

Netron is served on the loopback address and driven in Chromium, which reaches nothing else. The
clock of the page stays at the day of Netron's release, for half a year later it asks for an update
instead of opening anything.
"""

from __future__ import annotations

import re
import shutil
import urllib.request
from datetime import datetime

import pytest

CHROMIUM = shutil.which("chromium")
TOLD = "compress_onnx."
# What the file tells of a layer that was factored by a plan with predicted damage.
EXPECTED = {f"{TOLD}{name}" for name in ("form", "method", "rank", "damage", "error", "site")}
UNTIL_DRAWN = 60_000

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("netron", reason="make load-test")
    driver = pytest.importorskip("playwright.sync_api", reason="make load-test")
    with driver.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def shown(browser):
    """Opens a model in Netron, and gives its page once the graph is drawn."""
    import netron

    opened = []

    def shown(path):
        address = netron.serve(str(path), address=("127.0.0.1", 0))
        url = "http://{}:{}/".format(*address)
        context = browser.new_context(viewport={"width": 1440, "height": 900})
        opened.append((context, address))
        # Netron asks for consent, and counts its users.
        context.add_cookies([{"name": "consent", "value": "1", "url": url}])
        context.route(lambda asked: not asked.startswith(url), lambda route: route.abort())
        page = context.new_page()
        page.clock.set_fixed_time(release_of(url))
        page.goto(url)
        page.locator("body.default").wait_for(timeout=UNTIL_DRAWN)
        return page

    yield shown
    for context, address in opened:
        context.close()
        netron.stop(address)


def release_of(url: str) -> datetime:
    """The day of the Netron that is served."""
    with urllib.request.urlopen(url) as answer:
        found = re.search(r'<meta name="date" content="([^"]+)">', answer.read().decode())
    return datetime.fromisoformat(found[1])


def of_file(path) -> dict[str, dict[str, str]]:
    """The metadata of the products in the file, by the name of the node."""
    import onnx

    return {
        node.name: {entry.key: entry.value for entry in node.metadata_props}
        for node in onnx.load(path, load_external_data=False).graph.node
        if node.op_type in {"MatMul", "Gemm"}
    }


def beside(page, name: str) -> dict[str, str]:
    """The rows of the section Metadata that a click on the node called ``name`` opens."""
    page.locator(f'[id="node-name-{name}"] .node-item-type').click()
    panel = page.locator("#sidebar")
    row = panel.locator(".sidebar-item")
    # The properties are those of this node, not of one before.
    row.filter(has=page.locator('input[value="name"]')).get_by_text(name, exact=True).wait_for()
    found: dict[str, str] | None = None
    for part in panel.locator(".sidebar-section, .sidebar-item").all():
        if "sidebar-section" in part.get_attribute("class").split():
            found = {} if part.text_content() == "Metadata" else None
        elif found is not None:
            value = part.locator(".sidebar-item-value-line").first.text_content()
            found[part.locator("input").input_value()] = value
    return found or {}


def ours(entries: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in entries.items() if key.startswith(TOLD)}


def test_netron_shows_what_became_of_a_layer(bundles, shown):
    path = bundles / "digits-vit" / "model.onnx"
    told = {name: ours(entries) for name, entries in of_file(path).items()}
    factored = [name for name, entries in told.items() if entries.keys() >= EXPECTED]
    assert len(factored) > 1
    # Two layers, so that the panel is that of the node.
    first, last = factored[0], factored[-1]
    assert told[first] != told[last]
    page = shown(path)
    for name in (first, last):
        assert ours(beside(page, name)) == told[name]


def test_nothing_is_shown_beside_the_nodes_of_the_original(bundles, shown):
    path = bundles / "digits-vit.onnx"
    names = list(of_file(path))
    page = shown(path)
    for name in (names[0], names[-1]):
        entries = beside(page, name)
        # The exporter's own entries are there: the panel is read.
        assert entries
        assert not ours(entries)
