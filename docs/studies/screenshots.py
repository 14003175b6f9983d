"""Pictures of a report's page: ``python -m studies.screenshots BUNDLE FOLDER``.

The top of the page on a screen, light and dark, and on a phone; and the table of layers.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from compress_onnx.pipeline.report.page import PAGE_NAME

SHOTS = {
    "report-light": (1280, 1500, "light"),
    "report-dark": (1280, 1500, "dark"),
    "report-phone": (360, 1500, "light"),
}
"""Width and height in pixels, and the theme."""


def shoot(browser: Browser, page_file: Path, folder: Path) -> None:
    """Take all pictures of one page."""
    for name, (width, height, theme) in SHOTS.items():
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if theme == "dark" else "light",
        )
        page = context.new_page()
        page.goto(page_file.resolve().as_uri())
        for chart in page.locator("[data-chart]").all():
            chart.locator("svg").wait_for()
        page.screenshot(path=folder / f"{name}.png")
        context.close()


def main() -> None:
    """Take the pictures of a bundle's report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        shoot(browser, given.bundle / PAGE_NAME, given.folder)
        browser.close()


if __name__ == "__main__":
    main()
