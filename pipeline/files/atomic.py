"""Outputs that appear complete or not at all.

Whatever is written goes under a temporary name beside its destination first, and takes the
destination's place in one step of the file system. A run that fails leaves what was there before;
a run that is killed leaves that too, plus a hidden ``.*.tmp`` item that the next run removes.

A folder cannot replace a folder by a plain rename. On Linux the two swap names at once
(``renameat2`` with ``RENAME_EXCHANGE``). Where the system or the file system has no such call the
old folder steps aside under a hidden ``.*.old`` name first; a run killed in between leaves it
there complete, and the next run puts it back.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from compress_onnx.graph_passes.errors import OutputError

_HOST = re.sub(r"\W", "_", platform.node()) or "host"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}


def irregular(path: Path) -> bool:
    """Whether ``path`` is something else than a file.

    It is looked at once: between two looks, another process may remove it.
    """
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; on success what was written there becomes ``path``.

    The yielded path is in the same folder and has the same suffix. Missing folders are created,
    and removed again on failure. A symbolic link is followed: its target gets replaced.

    Raises:
        OutputError: ``path`` is not a regular file, or the file system refuses (no permission, no
            space); any ``OSError`` from the body is taken for such a refusal.
    """
    with _one_clear_line(path):
        target = Path(os.path.realpath(path))
        if irregular(target):
            raise OutputError(f"cannot write {path}: it exists and is not a regular file")
        with _parents(target):
            _tidy(target)
            temporary = _sibling(target, "tmp")
            try:
                yield temporary
                _sync(temporary)
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
            _sync_names(target.parent)


@contextmanager
def atomic_directory(path: Path, *, replaceable: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield an empty folder to fill; on success it becomes ``path``, whatever was there is removed.

    The yielded folder is a sibling of ``path``. Missing folders above it are created, and removed
    again on failure. A symbolic link is followed: its target gets replaced.

    Args:
        path: the folder to write.
        replaceable: says whether an existing, non-empty folder may be replaced.

    Raises:
        OutputError: ``path`` is a file, a mount point, the current folder, or a folder that may not
            be replaced; or the file system refuses (no permission, no space); any ``OSError`` from
            the body is taken for such a refusal.
    """
    with _one_clear_line(path):
        target = Path(os.path.realpath(path))
        with _parents(target):
            _tidy(target)
            _check_replaceable(path, target, replaceable)
            temporary = _sibling(target, "tmp")
            try:
                temporary.mkdir()
                yield temporary
                _sync_tree(temporary)
                _check_replaceable(path, target, replaceable)
                _publish(temporary, target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            _sync_names(target.parent)


def anything(_folder: Path) -> bool:
    """Lets :func:`atomic_directory` replace whatever is there."""
    return True


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield an empty hidden folder beside ``path``, for what is needed only until that is written.

    Missing folders above ``path`` are created, and removed again on failure.

    Raises:
        OutputError: the file system refuses (no permission, no space); any ``OSError`` from the
            body is taken for such a refusal.
    """
    with _one_clear_line(path):
        target = Path(os.path.realpath(path))
        with _parents(target):
            _tidy(target)
            scratch = _sibling(target, "tmp")
            try:
                scratch.mkdir()
                yield scratch
            finally:
                shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _one_clear_line(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        where = f" ({os.fsdecode(error.filename)})" if isinstance(error.filename, str) else ""
        raise OutputError(f"cannot write {path}: {reason}{where}") from error


@contextmanager
def _parents(target: Path) -> Iterator[None]:
    """Create the missing folders above ``target``; remove those again if the body fails."""
    missing = [folder for folder in target.parents if not folder.exists()]
    existing = target.parents[len(missing)]
    if not existing.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(existing))
    created: list[Path] = []
    try:
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            created.append(folder)
        yield
    except BaseException:
        with suppress(OSError):  # somebody else uses them by now
            for folder in reversed(created):
                folder.rmdir()
        raise


def _check_replaceable(path: Path, target: Path, replaceable: Callable[[Path], bool]) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise OutputError(f"cannot write the folder {path}: a file of that name exists")
    if target.is_mount() or Path.cwd().is_relative_to(target):
        raise OutputError(
            f"cannot replace {path} in one step, it is a mount point or the current folder: "
            "name a folder inside it"
        )
    if any(target.iterdir()) and not replaceable(target):
        raise OutputError(
            f"{path} holds files that are no earlier result of compress-onnx: choose another "
            "folder, or empty this one"
        )


def _publish(new: Path, target: Path) -> None:
    """Put the folder ``new`` at ``target``; what was there before is then at ``new``, or gone."""
    if not target.exists():
        new.rename(target)
    elif not _exchange(new, target):
        old = _sibling(target, "old")
        target.rename(old)
        try:
            new.rename(target)
        except OSError:
            old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names at once; False where that is not supported, with nothing changed."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _sibling(target: Path, kind: str) -> Path:
    """A unique hidden name beside ``target``, with its suffix, that says who owns it."""
    owner = f"{_HOST}-{os.getpid()}-{secrets.token_hex(4)}"
    return target.with_name(f".{target.stem}.{owner}.{kind}{target.suffix}")


def _tidy(target: Path) -> None:
    """Remove what killed runs left beside ``target``; put back an old folder that stepped aside."""
    for item, kind in _leftovers(target):
        with suppress(OSError):  # another user's, or another run is tidying as well
            if kind == "old" and not target.exists():
                item.rename(target)
            elif item.is_dir():
                shutil.rmtree(item)
            else:
                item.unlink()


def _leftovers(target: Path) -> list[tuple[Path, str]]:
    """The items made by :func:`_sibling` whose process is dead, with their kinds."""
    pattern = re.compile(
        re.escape(f".{target.stem}.{_HOST}-")
        + r"(?P<pid>\d+)-[0-9a-f]{8}\.(?P<kind>tmp|old)"
        + re.escape(target.suffix)
    )
    matches = [(item, pattern.fullmatch(item.name)) for item in target.parent.iterdir()]
    return [(i, m["kind"]) for i, m in matches if m is not None and not _is_alive(int(m["pid"]))]


def _is_alive(pid: int) -> bool:
    """False only when no process of this host has the id ``pid``."""
    if os.name != "posix":
        return True  # elsewhere os.kill ends the process instead of asking
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _sync_tree(folder: Path) -> None:
    for parent, _, files in os.walk(folder):
        for name in files:
            _sync(Path(parent, name))
        _sync_names(Path(parent))


def _sync_names(folder: Path) -> None:
    """Flush the names in ``folder`` to the disk where the file system knows how to."""
    with suppress(OSError):
        _sync(folder)


def _sync(path: Path) -> None:
    if os.name != "posix":
        return  # there a flush needs a writable handle, and folders have none
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
