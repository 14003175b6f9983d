"""Which licence a model has, as far as what lies beside it tells.

A model card's front matter goes first (:mod:`pipeline.deploy.card`). Without one there, these are
asked:

- ``config.json`` under ``license``;
- the model's ``metadata_props`` under ``license``;
- a file LICENSE, with a line ``SPDX-License-Identifier``, or a known title at its top.

Where they contradict each other, or a text has the titles of two licences, nothing is known: a
licence is never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from compress_onnx.pipeline.report.markdown import printable

_KEY = "license"
_SPDX = re.compile(r"SPDX-License-Identifier:[ \t]*([\w.+-]+)[ \t]*$", re.MULTILINE)
# Titles as lines of their own; of a licence that changes others, there is no identifier.
_TITLES = {
    r"Apache License\s+Version 2\.0, January 2004": "apache-2.0",
    r"(?:The )?MIT License(?: \(MIT\))?": "mit",
    r"(?:The )?BSD 2-Clause License": "bsd-2-clause",
    r"(?:The )?BSD 3-Clause License": "bsd-3-clause",
    r"Mozilla Public License,? Version 2\.0": "mpl-2.0",
    r"(?:Creative Commons )?Attribution 4\.0 International": "cc-by-4.0",
    r"(?:Creative Commons )?Attribution-ShareAlike 4\.0 International": "cc-by-sa-4.0",
    r"(?:Creative Commons )?Attribution-NonCommercial 4\.0 International": "cc-by-nc-4.0",
    r"[^\w\n]?Commons Clause[^\w\n]? License Condition.*": "",
}
_LINES = re.MULTILINE | re.IGNORECASE
_LONGEST = 200_000


@dataclass(frozen=True)
class Licence:
    """A licence that is told.

    Attributes:
        name: in lower case where it is an identifier of SPDX, else as it is told.
        where: what tells it.
    """

    name: str
    where: str

    @property
    def fields(self) -> dict[str, object]:
        """As the front matter of a card has it; the hub lists identifiers, and ``other``."""
        if _identifier(self.name) is None:
            return {"license": "other", "license_name": self.name}
        return {"license": self.name}


def told_licence(
    config: Mapping[str, object],
    files: Iterable[Path] = (),
    model: onnx.ModelProto | None = None,
) -> Licence | None:
    """The licence that is told; None where nothing tells one, or not clearly.

    Args:
        config: what ``config.json`` holds.
        files: those with the texts of licences.
        model: the graph.
    """
    found = list(_told(config, files, model))
    if len({licence.name for licence in found}) != 1:
        return None
    return found[0]


def _told(
    config: Mapping[str, object], files: Iterable[Path], model: onnx.ModelProto | None
) -> Iterator[Licence]:
    values = {"config.json": config.get(_KEY)}
    for entry in model.metadata_props if model is not None else ():
        if entry.key == _KEY:
            values["the model's metadata"] = entry.value
    for where, value in values.items():
        if isinstance(value, str) and (name := printable(value).strip()):
            yield Licence(_identifier(name) or name, where)
    for file in files:
        text = file.read_text(encoding="utf-8", errors="replace")[:_LONGEST]
        if (known := _of_text(text)) is not None:
            yield Licence(known, file.name)


def _of_text(text: str) -> str | None:
    """The licence whose text, or whose identifier, this is; None where that is not clear."""
    titles = [
        (match.start(), name)
        for title, name in _TITLES.items()
        for match in re.finditer(rf"^[ \t#*]*{title}[ \t#*]*$", text, _LINES)
    ]
    names = {_identifier(name) for name in _SPDX.findall(text)}
    if not names and not (titles and _only_copyright(text[: min(titles)[0]])):
        return None
    names |= {name for _, name in titles}
    return (names.pop() or None) if len(names) == 1 else None


def _only_copyright(text: str) -> bool:
    lines = (line.strip().lower() for line in text.splitlines())
    return all(not line or line.startswith("copyright") for line in lines)


def _identifier(name: str) -> str | None:
    """``name`` as the hub writes identifiers; None where SPDX has no such licence."""
    try:
        known = canonicalize_license_expression(name)
    except InvalidLicenseExpression:
        return None
    return None if " " in known or known.startswith("LicenseRef-") else known.lower()
