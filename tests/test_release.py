"""One version everywhere: in the package, the changelog and the citation."""

from __future__ import annotations

import datetime
import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
HEADING = re.compile(r"^## \[(.+?)\](?: - (\d{4}-\d{2}-\d{2}))?$", re.MULTILINE)


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_changelog_has_the_version_and_a_place_for_the_next():
    headings = HEADING.findall((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    assert headings[0] == ("Unreleased", "")
    version, released = headings[1]
    assert version == project()["version"]
    assert datetime.date.fromisoformat(released)


def test_the_citation_is_of_this_version():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    found = yaml.safe_load(text)
    assert {"cff-version", "message", "title", "authors"} <= found.keys()  # what the format demands
    assert found["cff-version"] == "1.2.0"
    assert (found["title"], found["license"]) == (project()["name"], project()["license"])
    assert str(found["version"]) == project()["version"]
    headings = dict(HEADING.findall((ROOT / "CHANGELOG.md").read_text(encoding="utf-8")))
    assert str(found["date-released"]) == headings[project()["version"]]
