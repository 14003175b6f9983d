"""``--help`` fits a screen and leaves no option out; ``help`` says all of it."""

from __future__ import annotations

import re
import shlex

import pytest
from cli_runner import error_line, parsed_options

from compress_onnx.pipeline.cli.app import app
from compress_onnx.pipeline.cli.dispatch import dispatch
from compress_onnx.pipeline.cli.parameters import ADVANCED, panels, registered

assert dispatch  # it has registered the commands
COMMANDS = dict(registered(app))
COLUMNS, ROWS = 80, 48
EXAMPLE = re.compile(r"`(compress-onnx [^`]+)`")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


@pytest.fixture
def cli(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    return cli


def positive(names):
    """``--x`` for ``--no-x``, where there are both."""
    return {f"--{n[5:]}" if f"--{n[5:]}" in names else n for n in names}


@pytest.mark.parametrize("name", ["", "cache", *COMMANDS])
def test_help_fits_a_screen(cli, name):
    lines = cli(*name.split(), "--help").out.splitlines()
    assert len(lines) <= ROWS
    assert max(map(len, lines)) <= COLUMNS


@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_is_missing(cli, name):
    short = cli(*name.split(), "--help").out.replace("--[no-]", "--")
    whole = cli("help", *name.split()).out.replace("--[no-]", "--")
    assert positive(parsed_options(name)) <= set(OPTION.findall(whole))
    for members in panels(COMMANDS[name]).values():
        for one in members:
            assert not one.is_option or set(OPTION.findall(short)) & positive(one.names)


@pytest.mark.parametrize("name", COMMANDS)
def test_what_help_says_is_whole(cli, name):
    def words(text):
        return " ".join(re.sub("[`*]", "", text).split())

    whole = words(cli("help", *name.split()).out)
    for paragraph in re.split(r"\n\s*\n", COMMANDS[name].__doc__.strip()):
        assert words(paragraph) in whole
    for members in panels(COMMANDS[name]).values():
        for one in members:
            assert words(one.help) in whole


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_use_options_that_exist(name):
    for example in EXAMPLE.findall(COMMANDS[name].__doc__):
        _, *words = shlex.split(" ".join(example.split()))
        command = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
        known = {option for one in panels(COMMANDS[command]).values() for option in one}
        names = {name for one in known for name in one.names}
        assert {word for word in words if word.startswith("-")} <= names


def test_every_command_that_takes_something_has_an_example():
    without = {n for n, command in COMMANDS.items() if not EXAMPLE.search(command.__doc__)}
    assert without == {"doctor", "cache info", "cache clear"}


def test_advanced_options_are_only_named(cli):
    short = cli("compress", "--help").out
    assert "--rank-multiple" in short.partition(ADVANCED)[2]
    assert "Ranks are multiples" not in short
    assert "Ranks are multiples" in cli("help", "compress").out


def test_a_long_text_is_cut_behind_a_clause_or_with_a_sign(cli):
    rows = cli("bench", "--help").out.splitlines()
    told = {row.split()[0]: row for row in rows if row.startswith("  --")}
    assert told["--loads"].rstrip().endswith("in fresh processes")
    assert told["--warmup"].rstrip().endswith("Untimed rounds [default: 10]")
    flops = next(row for row in cli("compress", "--help").out.splitlines() if "--flops" in row)
    assert flops.rstrip().endswith("…")


def test_titles_are_whole(cli):
    assert "Commands\n" in re.sub(" +\n", "\n", cli("cache", "--help").out)


def test_a_group_without_a_command_says_which_there_are(cli):
    told = cli("cache", code=2)
    assert "Remove all entries" in told.out
    assert error_line(told) == "error: no command (see compress-onnx cache --help)"


def test_help_of_an_unknown_command_suggests_one(cli):
    assert "did you mean 'optimize'?" in cli("help", "optimise", code=2).err
    told = cli("help", "cache").out
    assert "cache info" in told
    assert "cache clear" in told
