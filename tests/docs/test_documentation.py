"""What the documentation shows is so: its blocks run, in order, a page at a time, in a folder.

The folder has what ``documentation_files`` makes. A fence says what becomes of its block:

- ``console``: each command has to succeed (or to end as ``<!-- exit: 1 -->`` says).
- ``python``: is executed; with ``title="FILE.py"`` it is written to that file instead.
- ``yaml``: with ``title="FILE.yaml"`` it is a recipe, is read as one, and written to that file.
- ``text title="output"``: what the last command of the block before printed. Numbers may be others,
  and ``…`` stands for any lines, or the rest of a line. ``<!-- varies: WORDS, … -->`` names the
  first words of lines that the machine decides.

- Other ``text`` and ``mermaid``: nothing; these are formulas, trees of files, drawings.

``<!-- not run: REASON -->`` before a block leaves it out. With ``COMPRESS_ONNX_UPDATE_DOCS=1`` the
blocks of outputs are written into the pages instead of compared.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import documentation_files
import pytest
import yaml

from compress_onnx.pipeline.cli import console, main
from compress_onnx.pipeline.recipe import read_recipe

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *(page for page in sorted(DOCS.rglob("*.md")) if "studies" not in page.parts),
]
FENCE = re.compile(
    r"(?P<comments>(?:^<!--[^\n]*-->\n+)*)^```(?P<info>[^\n]*)\n(?P<body>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
COMMENT = re.compile(r"<!-- (not run|exit|varies): (.*?) -->")
NUMBER = re.compile(
    r"(?<![A-Za-z_\d])-?\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d+)?(?:\s?(?:ns|µs|ms|s|B|kB|MB|GB)\b)?|\binf\b"
)
BUSY = re.compile(
    r"^[^\n]*(?:other processes took the cores|the speed-up is above the ideal one)[^\n]*\n",
    re.MULTILINE,
)
"""What benchmarks add on a machine that does something else at the time."""

UPDATE = os.environ.get("COMPRESS_ONNX_UPDATE_DOCS") == "1"
WIDTH = 100


@dataclass(frozen=True)
class Block:
    language: str
    title: str | None
    body: str
    comments: dict[str, str]
    span: tuple[int, int]

    @property
    def is_output(self) -> bool:
        return self.language == "text" and self.title == "output"


def blocks_of(text: str) -> list[Block]:
    found = []
    for fence in FENCE.finditer(text):
        language, _, rest = fence["info"].partition(" ")
        title = re.search(r'title="([^"]+)"', rest)
        comments = dict(COMMENT.findall(fence["comments"]))
        span = fence.span("body")
        found.append(Block(language, title and title[1], fence["body"], comments, span))
    return found


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documentation")
    documentation_files.write_files(folder)
    return folder


@pytest.fixture
def folder(prepared, tmp_path, tmp_path_factory, monkeypatch):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPRESS_ONNX_CACHE", str(tmp_path_factory.mktemp("cache")))
    # Lines as they are, however long: pages break them where they like.
    monkeypatch.setattr(console.out, "width", 2000)
    return tmp_path


def run_command(command: str, monkeypatch) -> tuple[int, str]:
    """The exit code, and what was printed to stdout, then the line of an error."""
    words = shlex.split(command)
    if words[0] != "compress-onnx":
        if words[0] == "python":
            words[0] = sys.executable
            command = shlex.join(words)
        elif shutil.which(words[0]) is None:
            pytest.skip(f"needs {words[0]}")
        done = subprocess.run(  # noqa: S602 - our own pages
            command, shell=True, check=False, capture_output=True, text=True
        )
        return done.returncode, done.stdout + done.stderr
    monkeypatch.setattr(sys, "argv", words)
    said, complained = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", complained)
    code = 0
    with redirect_stdout(said):
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    wrong = [n for n in complained.getvalue().splitlines() if n.startswith("error: ")]
    return code, BUSY.sub("", said.getvalue()) + "".join(f"{line}\n" for line in wrong)


def run_block(block: Block, names: dict[str, object], monkeypatch) -> str:
    if block.language == "python":
        if block.title is not None:
            Path(block.title).write_text(block.body, encoding="utf-8")
            compile(block.body, block.title, "exec")
            return ""
        said = io.StringIO()
        with redirect_stdout(said):
            exec(compile(block.body, "a page", "exec"), names)  # noqa: S102 - our own page
        return said.getvalue()
    if block.language == "yaml":
        assert block.title is not None, "a recipe needs a title, its file; else say not run"
        Path(block.title).parent.mkdir(parents=True, exist_ok=True)
        Path(block.title).write_text(block.body, encoding="utf-8")
        read_recipe(Path(block.title))
        return ""
    assert block.language == "console", f"what becomes of a block of {block.language}?"
    said, expected = "", int(block.comments.get("exit", 0))
    *before, last = [
        line
        for line in block.body.replace("\\\n", " ").splitlines()
        if line.strip() and not line.startswith("#")
    ]
    for command in [*before, last]:
        code, said = run_command(command.partition("  # ")[0], monkeypatch)
        assert code == (expected if command is last else 0), f"{command}\n{said}"
    return said


def joined(text: str) -> list[str]:
    """Lines, with those that start with spaces put behind the line before."""
    found: list[str] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        if line[0] == " " and found:
            found[-1] += f" {line.strip()}"
        else:
            found.append(line)
    return found


def normal(text: str, varying: list[str]) -> list[str]:
    lines = [" ".join(NUMBER.sub("#", line).split()) for line in joined(text)]
    return [line for line in lines if not line.startswith(tuple(varying) or ("\0",))]


def matches(shown: list[str], printed: list[str]) -> bool:
    pattern = "".join(
        r"(?:[^\n]*\n)*" if n == "…" else re.escape(n).replace("…", "[^\n]*") + "\n" for n in shown
    )
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in printed)) is not None


def wrapped(text: str) -> str:
    """As it goes into a page: no trailing spaces, long sentences broken."""
    lines: list[str] = []
    text = text.replace(os.environ["COMPRESS_ONNX_CACHE"], "~/.cache/compress-onnx")
    for line in map(str.rstrip, text.splitlines()):
        if len(line) > WIDTH and "  " not in line.strip() and "|" not in line:
            lines += textwrap.wrap(line, WIDTH, subsequent_indent="    ", break_long_words=False)
        elif line:
            lines.append(line)
    return "".join(f"{line}\n" for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if "```" in p.read_text("utf-8")], ids=page_id)
def test_blocks_of(page, folder, monkeypatch):
    text = page.read_text(encoding="utf-8")
    names: dict[str, object] = {}
    printed, changes = "", []
    for block in blocks_of(text):
        if "not run" in block.comments:
            assert len(block.comments["not run"].split()) > 2, "a reason says why"
            if block.language == "yaml":
                yaml.safe_load(block.body)
            printed = ""
            continue
        if block.language == "mermaid" or (block.language == "text" and not block.is_output):
            continue
        if not block.is_output:
            printed = run_block(block, names, monkeypatch)
            continue
        assert printed.strip(), f"nothing printed what stands here:\n{block.body}"
        if UPDATE and "…" not in block.body:
            changes.append((block.span, wrapped(printed)))
            continue
        varying = [word.strip() for word in block.comments.get("varies", "").split(",") if word]
        shown, said = normal(block.body, varying), normal(printed, varying)
        assert shown, "all of it varies"
        assert matches(shown, said), "\n".join(["shown:", *shown, "printed:", *said])
    for (start, end), body in reversed(changes):
        text = text[:start] + body + text[end:]
    if changes:
        page.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_of(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, _ = target.partition("#")
        if file and "://" not in file:
            assert (page.parent / file).exists(), target


def test_the_readme_is_read_to_the_end():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    first = blocks_of(text)[0]
    assert first.language == "console"
    commands = [line.partition("  #")[0].strip() for line in first.body.splitlines()]
    assert commands == ["make compress-onnx", "make test"]
