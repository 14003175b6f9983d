"""English documents that are installed anyway: with Python, and with packages.

They are read, never imported or run. What cannot be read or parsed is passed over, because some
files are there to be wrong. Everything is in the order of names, whatever was installed first.
"""

from __future__ import annotations

import ast
import re
import struct
import sysconfig
import warnings
from collections import deque
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path, PurePath

_NOT_DOCUMENTATION = frozenset({"site-packages", "test", "tests", "idle_test"})
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_BLOCKS = ("body", "handlers", "cases", "orelse", "finalbody")
_MAX_FILE_BYTES = 1 << 20
_MAX_MESSAGE_BYTES = 4096
_LITTLE_ENDIAN_CATALOGUE = b"\xde\x12\x04\x95"

_CODE_BLOCK = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_PICTURE = re.compile(r"!\[[^\[\]]*\]\([^()]*\)")
_LINK = re.compile(r"\[([^\[\]]+)\](?:\([^()]*\)|\[[^\[\]]*\])|`([^`<>]+?)\s*<[^<>]*>`_{1,2}")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")


def reference_topics() -> dict[str, str]:
    """Python's language reference by topic; empty where this Python comes without."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return {}
    return dict(topics)


def library_files() -> dict[str, Path]:
    """The sources of Python's standard library, without tests and what is installed beside it.

    By their names in the library.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = {path.relative_to(root): path for path in sorted(root.rglob("*.py"))}
    return {name.as_posix(): path for name, path in found.items() if _is_documentation(name)}


def installed() -> dict[str, Distribution]:
    """The installed packages by their normalized names; of two versions, the one that imports."""
    found: dict[str, Distribution] = {}
    for distribution in distributions():
        if "Name" in distribution.metadata:
            name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
            found.setdefault(name, distribution)
    return dict(sorted(found.items()))


def description_of(package: Distribution) -> str:
    """A package's description without pictures, links, tags and blocks of code."""
    if "Description" not in package.metadata:
        return ""
    text = _PICTURE.sub("", _CODE_BLOCK.sub("", package.metadata["Description"]))
    return _TAG.sub("", _LINK.sub(r"\1\2", text))


def files_of(package: Distribution, suffix: str) -> dict[str, Path]:
    """The installed files of a package that end in ``suffix``, by name, without its tests."""
    return {
        file.as_posix(): Path(str(file.locate()))
        for file in sorted(package.files or ())
        if file.suffix == suffix and ".." not in file.parts and _is_documentation(file)
    }


def catalogues_of(package: Distribution) -> list[Path]:
    """One compiled gettext catalogue of each name: all languages translate the same messages."""
    return list({path.name: path for path in files_of(package, ".mo").values()}.values())


def docstrings_of(path: Path) -> Iterator[str]:
    """The docstrings in a file of Python code."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(_content(path))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in _statements(tree):
        if isinstance(node, _DOCUMENTED):
            text = ast.get_docstring(node)
            if text:
                yield text


def messages_of(path: Path) -> Iterator[str]:
    """The messages of a compiled gettext catalogue, as they stand in the code: in English."""
    try:
        content = _content(path)
        order = "<" if content.startswith(_LITTLE_ENDIAN_CATALOGUE) else ">"
        count, table = struct.unpack_from(f"{order}2I", content, 8)
        ends = struct.unpack_from(f"{order}{2 * count}I", content, table)
        for length, start in zip(ends[::2], ends[1::2], strict=True):
            message = content[start : start + min(length, _MAX_MESSAGE_BYTES)]
            # CONTEXT \x04 SINGULAR \x00 PLURAL
            yield message.rpartition(b"\x04")[2].partition(b"\x00")[0].decode()
    except (OSError, ValueError, struct.error):
        return


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """As ``ast.walk`` without expressions, which are nine tenths of a tree."""
    waiting = deque([tree])
    while waiting:
        node = waiting.popleft()
        yield node
        for block in _BLOCKS:
            waiting += getattr(node, block, ())


def _is_documentation(path: PurePath) -> bool:
    return _NOT_DOCUMENTATION.isdisjoint(path.parts)


def _content(path: Path) -> bytes:
    """The file's content; of a very large file, which is data and no prose, nothing."""
    return path.read_bytes() if path.stat().st_size <= _MAX_FILE_BYTES else b""
