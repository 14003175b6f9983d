"""Run the command line in this process (fast), or as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

from compress_onnx.pipeline.cli import main


class Cli:
    """``cli("analyze", "model.onnx", code=2)`` runs a command here and checks its exit code."""

    def __init__(self, capsys, monkeypatch):
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def __call__(self, *arguments, code=0):
        """What was printed, as ``out`` and ``err``; any exception but an exit is a failure."""
        self._monkeypatch.setattr(sys, "argv", ["compress-onnx", *map(str, arguments)])
        try:
            main()
            returned = 0
        except SystemExit as stop:
            returned = stop.code or 0
        captured = self._capsys.readouterr()
        assert returned == code, captured.err
        return captured


def start(*arguments, code=0):
    """Run a command as a process."""
    return python("-m", "compress_onnx.pipeline.cli", *arguments, code=code)


def python(*arguments, code=0):
    """Run Python as a process, and check its exit code and that no traceback is printed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        # Of one width, because readline (which pytest imports) adds COLUMNS behind Python's back.
        env=os.environ | {"COLUMNS": "200"},
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def parsed_options(name):
    """The long names of all options that the parser of a command takes."""
    from typer.main import get_command

    from compress_onnx.pipeline.cli.app import app
    from compress_onnx.pipeline.cli.dispatch import dispatch

    assert dispatch  # it has registered the commands
    command = get_command(app)
    for part in name.split():
        command = command.commands[part]
    names = (n for one in command.params for n in (*one.opts, *one.secondary_opts))
    return {n for n in names if n.startswith("--")}


def error_line(captured):
    """The one line that says what is wrong; it is the last on stderr."""
    lines = captured.err.strip().splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 1
    assert lines[-1].startswith("error: ")
    return lines[-1]
