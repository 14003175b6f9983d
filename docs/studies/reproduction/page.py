"""The document: sections kept as JSON in one folder, and the page that they make.

What agrees, what does not and why is written by hand, in ``discussion``.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from compress_onnx.pipeline.files.atomic import atomic_file
from compress_onnx.pipeline.report.markdown import Markdown, template
from studies.reproduction.section import Section, Table


def keep(section: Section, folder: Path) -> None:
    """Write ``section`` into ``folder``, instead of an earlier one of its name."""
    with atomic_file(folder / f"{section.name}.json") as temporary:
        temporary.write_text(section.model_dump_json(indent=1) + "\n", encoding="utf-8")


def kept(names: Sequence[str], folder: Path) -> list[Section]:
    """The sections of ``names`` that ``folder`` has, in their order."""
    paths = [folder / f"{name}.json" for name in names]
    return [Section.model_validate_json(path.read_bytes()) for path in paths if path.is_file()]


def write_page(sections: Sequence[Section], page: Path, pictures: Path) -> None:
    """Write the document.

    Args:
        sections: in the order of the page.
        page: the Markdown file.
        pictures: the folder of the sections' pictures, below that of ``page``.
    """
    text = render(sections, pictures.relative_to(page.parent).as_posix())
    with atomic_file(page) as temporary:
        temporary.write_text(text, encoding="utf-8")


def render(sections: Sequence[Section], pictures: str) -> str:
    """The document as GitHub-flavoured Markdown."""
    return template("reproduction.md.jinja", "studies.reproduction").render(
        sections=sections,
        quick=any(section.quick for section in sections),
        minutes=sum(section.seconds for section in sections) / 60,
        folder=pictures,
        markdown=Markdown,
        table=_table,
        discussion=_discussion,
    )


def _discussion(section: Section) -> Markdown:
    source = files("studies.reproduction") / "discussion" / f"{section.name}.md"
    return Markdown(source.read_text(encoding="utf-8").strip())


def _table(table: Table) -> Markdown:
    rule = [":---"] * table.texts + ["---:"] * (len(table.header) - table.texts)
    lines = [table.header, rule, *table.rows]
    return Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines))
