"""What the site takes from the code, and that it builds without a warning or a foreign address."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import hooks
import pytest
from cli_runner import parsed_options

from compress_onnx.pipeline import recipe

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
COMMANDS = sorted({name.split()[0] for name in hooks.commands()})


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_page_with_all_parts(name):
    text = (DOCS / "commands" / f"{name}.md").read_text(encoding="utf-8")
    titles = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    kinds = [re.match(r"When|Synopsis|How it works|Options|Examples", title) for title in titles]
    assert all(kinds)
    assert {kind[0] for kind in kinds} == {
        "When",
        "Synopsis",
        "How it works",
        "Options",
        "Examples",
    }
    filled = hooks.filled(text).partition("## Examples")[0]
    assert "<!--" not in filled
    assert "The site has" not in filled


def test_the_list_of_commands_is_complete():
    text = (DOCS / "commands" / "index.md").read_text(encoding="utf-8")
    assert "\n".join(hooks.all_commands()) in text


@pytest.mark.parametrize("name", sorted(hooks.commands()))
def test_options_are_those_that_are_parsed(name):
    table = "\n".join(hooks.options(name))
    listed = set(re.findall(r"`(--[a-z-]+)`", "\n".join(_first_cells(table))))
    assert listed == parsed_options(name)


def _first_cells(table: str) -> list[str]:
    return [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]


def test_every_key_of_a_recipe_is_told_with_its_default():
    text = "\n".join(hooks.recipe_keys())
    for model in hooks._models(recipe.Recipe):
        assert f"{{ #{model.__name__.lower()} }}" in text
        for key in model.model_fields:
            assert f"| `{key}` |" in text
    assert "| `opset` | whole number ≥ 13 | `23` |" in text
    assert "| `name` | text | required |" in text


def test_links_that_the_site_has_not_become_text():
    class Page:
        class file:  # noqa: N801 - as MkDocs calls it
            src_uri = "ci.md"

    shown = hooks.on_page_markdown(
        "[a](../action.yml) [b](forms.md#x) [c](studies/rows.py)", page=Page
    )
    assert shown == "a [b](forms.md#x) c"


def test_every_page_has_a_place():
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert {p for p in pages if not p.startswith(("studies/", "reproduction/"))} == listed


@pytest.mark.slow
def test_the_site_builds_strictly_and_fetches_nothing(tmp_path):
    pytest.importorskip("mkdocs", reason="needs the docs extra")
    pytest.importorskip("mkdocstrings", reason="needs the docs extra")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", tmp_path / "site"],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip()
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe|source)[^>]* src=\"(http[^\"]+)", text)
        fetched += re.findall(
            r"<link[^>]* rel=\"(?:stylesheet|preload|preconnect)\"[^>]*http", text
        )
        assert not fetched, page
        assert 'class="mermaid"' not in text  # it would be drawn by a script from elsewhere
        assert "<!-- synopsis" not in text
