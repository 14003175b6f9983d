import errno
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from compress_onnx.graph_passes.errors import OutputError
from compress_onnx.pipeline.files import atomic
from compress_onnx.pipeline.files.atomic import atomic_directory, atomic_file

EIO = os.strerror(errno.EIO)
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and devices")


def marked(folder):
    return (folder / "ours").exists()


def fill(folder, text):
    (folder / "ours").write_text(text)
    (folder / "deep").mkdir()
    (folder / "deep" / "file").write_text(text)


def content(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def write_file(path, text, then=lambda: None):
    with atomic_file(path) as temporary:
        temporary.write_text(text)
        then()


def write_folder(path, text, then=lambda: None):
    with atomic_directory(path, replaceable=marked) as temporary:
        fill(temporary, text)
        then()


def raising(error):
    def action():
        raise error

    return action


def write_to_full_disk():
    with Path("/dev/full").open("wb") as full:
        full.write(b"rest")


def no_exchange(*_):
    return False


def run_and_kill(code, *arguments):
    """Run ``code`` in a process that ends itself by SIGKILL; return when it is dead."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], timeout=60, check=False
    )
    assert result.returncode == -signal.SIGKILL


# Files


def test_a_file_appears_with_its_content_and_nothing_else(tmp_path):
    with atomic_file(tmp_path / "new" / "deep" / "model.onnx") as temporary:
        assert temporary.parent == tmp_path / "new" / "deep"
        assert temporary.suffix == ".onnx"
        temporary.write_bytes(b"weights")
        assert not (tmp_path / "new" / "deep" / "model.onnx").exists()
    assert names(tmp_path / "new" / "deep") == ["model.onnx"]
    assert (tmp_path / "new" / "deep" / "model.onnx").read_bytes() == b"weights"


@pytest.mark.parametrize("failure", [ValueError("a bug"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_alone(tmp_path, failure):
    path = tmp_path / "report.json"
    path.write_text("old")
    with pytest.raises(type(failure)):
        write_file(path, "half of the n", then=raising(failure))
    assert names(tmp_path) == ["report.json"]
    assert path.read_text() == "old"


def test_a_failure_removes_the_folders_that_were_made_for_it(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "a" / "b" / "c.json"):
        raise ZeroDivisionError
    assert names(tmp_path) == []


@posix
def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path):
    with pytest.raises(OutputError, match=r"cannot write .*x\.bin: No space left on device"):
        write_file(tmp_path / "x.bin", "part", then=write_to_full_disk)
    assert names(tmp_path) == []


@posix
def test_a_file_that_grows_too_large_leaves_the_old_one(tmp_path):
    import resource

    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OutputError, match="File too large"), atomic_file(path) as temporary:
            temporary.write_bytes(bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["x.bin"]
    assert path.read_bytes() == b"old"


def test_a_file_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("kept")
    with (
        pytest.raises(OutputError, match=r"not a folder \(.*file\)"),
        atomic_file(tmp_path / "file" / "below" / "x.json"),
    ):
        pytest.fail("the body must not run")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that root cannot write")
def test_an_unwritable_folder_is_one_clear_line():
    with pytest.raises(OutputError, match=r"cannot write /proc/nothing/x\.json: ") as info:
        write_file(Path("/proc/nothing/x.json"), "x")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("special", ["folder", "/dev/null"])
def test_only_regular_files_are_replaced(tmp_path, special):
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(OutputError, match="not a regular file"),
        atomic_file(tmp_path / special),
    ):
        pytest.fail("the body must not run")


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x.json").write_text("old")
    (tmp_path / "link.json").symlink_to(tmp_path / "real" / "x.json")
    write_file(tmp_path / "link.json", "new")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real" / "x.json").read_text() == "new"


def test_the_file_gets_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    write_file(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


@posix
def test_a_killed_writer_leaves_the_old_file_and_the_next_run_tidies_up(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("old")
    run_and_kill(
        """
        import os, signal, sys
        from pathlib import Path
        from compress_onnx.pipeline.files.atomic import atomic_file
        with atomic_file(Path(sys.argv[1])) as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        path,
    )
    assert path.read_text() == "old"
    assert len(names(tmp_path)) == 2
    write_file(path, "new")
    assert names(tmp_path) == ["x.json"]
    assert path.read_text() == "new"


def test_tidying_spares_living_runs_other_hosts_and_other_names(tmp_path):
    living = atomic._sibling(tmp_path / "x.json", "tmp")
    other_host = tmp_path / ".x.elsewhere-1-0123abcd.tmp.json"
    other_name = tmp_path / f".y.{atomic._HOST}-4194305-0123abcd.tmp.json"
    dead = tmp_path / f".x.{atomic._HOST}-4194305-0123abcd.tmp.json"
    for path in (living, other_host, other_name, dead):
        path.write_text("")
    write_file(tmp_path / "x.json", "")
    assert names(tmp_path) == sorted([living.name, other_host.name, other_name.name, "x.json"])


# Folders


def test_a_folder_appears_complete(tmp_path):
    with atomic_directory(tmp_path / "a" / "out", replaceable=marked) as temporary:
        fill(temporary, "new")
        assert not (tmp_path / "a" / "out").exists()
    assert names(tmp_path / "a") == ["out"]
    assert content(tmp_path / "a" / "out") == {"ours": "new", "deep/file": "new"}


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_replaces_the_old_one_whole(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(atomic, "_exchange", no_exchange)
    out = tmp_path / "out"
    for text in ("old", "new"):
        with atomic_directory(out, replaceable=marked) as temporary:
            fill(temporary, text)
            (temporary / text).write_text("")
    assert names(tmp_path) == ["out"]
    assert content(out) == {"ours": "new", "deep/file": "new", "new": ""}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux swaps names")
def test_names_are_swapped_at_once(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
    if not atomic._exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot swap names")
    assert names(tmp_path / "a") == ["b"]
    assert names(tmp_path / "b") == ["a"]
    with pytest.raises(FileNotFoundError):
        atomic._exchange(tmp_path / "a", tmp_path / "missing")


def test_a_failure_leaves_the_old_folder_alone(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    fill(out, "old")
    with pytest.raises(ZeroDivisionError):
        write_folder(out, "half", then=raising(ZeroDivisionError()))
    assert names(tmp_path) == ["out"]
    assert content(out) == {"ours": "old", "deep/file": "old"}


def test_a_failure_without_an_old_folder_leaves_nothing(tmp_path):
    with pytest.raises(OutputError, match=EIO):
        write_folder(tmp_path / "a" / "out", "half", then=raising(OSError(errno.EIO, EIO)))
    assert names(tmp_path) == []


def test_a_failed_fallback_puts_the_old_folder_back(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    fill(out, "old")
    monkeypatch.setattr(atomic, "_exchange", no_exchange)
    rename = Path.rename

    def fail_to_move_in(self, target):
        if self.name.endswith(".tmp"):
            raise OSError(errno.EIO, EIO)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_to_move_in)
    with pytest.raises(OutputError, match=EIO):
        write_folder(out, "new")
    assert names(tmp_path) == ["out"]
    assert content(out) == {"ours": "old", "deep/file": "old"}


def test_a_folder_of_somebody_else_is_refused_before_any_work(tmp_path):
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter1.tex").write_text("years of work")
    with (
        pytest.raises(OutputError, match="no earlier result of compress-onnx"),
        atomic_directory(out, replaceable=marked),
    ):
        pytest.fail("the body must not run")
    assert content(out) == {"chapter1.tex": "years of work"}


def test_files_that_appear_meanwhile_are_not_replaced_either(tmp_path):
    out = tmp_path / "out"

    def somebody_writes():
        out.mkdir()
        (out / "notes.txt").write_text("mine")

    with pytest.raises(OutputError, match="no earlier result"):
        write_folder(out, "new", then=somebody_writes)
    assert names(tmp_path) == ["out"]
    assert content(out) == {"notes.txt": "mine"}


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    write_folder(tmp_path / "out", "new")
    assert content(tmp_path / "out")["ours"] == "new"


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "out").write_text("kept")
    with (
        pytest.raises(OutputError, match="a file of that name exists"),
        atomic_directory(tmp_path / "out", replaceable=marked),
    ):
        pytest.fail("the body must not run")
    assert (tmp_path / "out").read_text() == "kept"


def test_the_current_folder_is_not_pulled_away(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(OutputError, match="current folder"),
        atomic_directory(Path("."), replaceable=marked),  # noqa: PTH201
    ):
        pytest.fail("the body must not run")


@posix
def test_a_run_killed_while_it_writes_leaves_the_old_folder(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    fill(out, "old")
    run_and_kill(
        """
        import os, signal, sys
        from pathlib import Path
        from compress_onnx.pipeline.files.atomic import atomic_directory
        with atomic_directory(Path(sys.argv[1]), replaceable=lambda f: True) as temporary:
            (temporary / "ours").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        out,
    )
    assert content(out) == {"ours": "old", "deep/file": "old"}
    write_folder(out, "new")
    assert names(tmp_path) == ["out"]
    assert content(out) == {"ours": "new", "deep/file": "new"}


@posix
def test_a_run_killed_between_two_renames_is_repaired_by_the_next(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    fill(out, "old")
    run_and_kill(
        """
        import os, signal, sys
        from pathlib import Path
        from compress_onnx.pipeline.files import atomic
        atomic._exchange = lambda one, other: False
        rename = Path.rename
        def rename_and_die(self, target):
            rename(self, target)
            os.kill(os.getpid(), signal.SIGKILL)
        Path.rename = rename_and_die
        with atomic.atomic_directory(Path(sys.argv[1]), replaceable=lambda f: True) as temporary:
            (temporary / "ours").write_text("new")
        """,
        out,
    )
    assert not out.exists()
    with (
        pytest.raises(ZeroDivisionError),
        atomic_directory(out, replaceable=marked),
    ):
        raise ZeroDivisionError
    assert names(tmp_path) == ["out"]
    assert content(out) == {"ours": "old", "deep/file": "old"}


def _write_often(out, text):
    for _ in range(20):
        write_folder(out, text)


@posix
def test_concurrent_writers_never_mix(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    fill(out, "0")
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_often, args=(out, str(i))) for i in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert names(tmp_path) == ["out"]
    assert set(content(out)) == {"ours", "deep/file"}
    assert len(set(content(out).values())) == 1


def test_temporary_names_are_unique_and_hidden(tmp_path):
    made = {atomic._sibling(tmp_path / "a.onnx", "tmp").name for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"\.a\..+\.tmp\.onnx", name) for name in made)
