"""Whatever the arguments are: a command ends with a code, and an error is one line."""

import argparse
import io
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainmesh.launcher.cli import COMMANDS, build_parser, main

SEED, NUM_TRIES = 11, 6
STARTS = {"doctor", "lab"}
"""Commands that start processes and ask networks."""
SLOW = {"doctor": 1}
TAKEN_ELSEWHERE = {"launch", "serve"}  # test_bad_input, and the tests of the router
GRAPH = (
    "version: 1\nnodes: {g0: {kind: rank}, g1: {kind: rank}}\n"
    "links: [{src: g0, dst: g1, bandwidth_gbps: 8, alpha_us: 5}]\n"
)
# fmt: off
VALUES = [
    "", "-1", "0", "1", "2", "nan", "inf", "1e999", "9" * 20, "a", "ü", "\udcff", "x" * 300,
    "x" * 5000, "/", ".", "..", "g.yaml", "binary", "empty", "folder", "none", "/dev/null",
    "/proc/self/mem", "a\nb", "a,b", "1:2", "0x10", "10MB", "1.5GB", "-5MB", "[::1]",
    "http://127.0.0.1:1", "http://[", "https://u:p@h", "{}", "null", "%s", "١٢", "1_000",
    "/dev/full", "--", "-", "h0", "g0", "g1", "5s",
]
# fmt: on
WAITS = {"--watch", "--debug"}
"""One goes on until Ctrl-C, the other wants the traceback."""


def leaves(
    parser: argparse.ArgumentParser, words: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """A command's actions with their parsers, or the command itself."""
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not below:
        yield words, parser
    for action in below:
        for name, chosen in action.choices.items():
            yield from leaves(chosen, (*words, name))


def command_lines(command: str, chance: random.Random) -> Iterator[list[str]]:
    parsers = build_parser(command)._subparsers
    assert parsers is not None
    choices = parsers._group_actions[0].choices
    assert isinstance(choices, dict)
    for words, parser in leaves(choices[command], (command,)):
        tries = (arguments(parser, chance) for _ in range(SLOW.get(command, NUM_TRIES)))
        for given in dict.fromkeys(tuple(given) for given in tries):
            yield [*words, *given]


def arguments(parser: argparse.ArgumentParser, chance: random.Random) -> Iterator[str]:
    for action in parser._actions:
        options = action.option_strings
        if isinstance(action, argparse._HelpAction) or WAITS & set(options):
            continue
        if options:
            if chance.random() > (0.9 if action.required else 0.35):
                continue
            yield chance.choice(options)
        values = 0 if action.nargs == 0 else 1 if action.nargs in (None, "?") else 2
        for _ in range(values):
            known = list(action.choices or ())
            yield str(chance.choice(known if known and chance.random() < 0.8 else VALUES))


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=[pytest.mark.starts] if command in STARTS else [])
        for command in sorted(set(COMMANDS) - TAKEN_ELSEWHERE)
    ],
)
def test_arguments_are_taken_or_refused_in_one_line(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "XDG_STATE_HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    Path("g.yaml").write_text(GRAPH)
    Path("binary").write_bytes(bytes(range(256)))
    Path("empty").touch()
    Path("folder").mkdir()
    tried = 0
    for argv in command_lines(command, random.Random(f"{SEED} {command}")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"no topology")))
        code: object
        try:
            code = main(argv)
        except SystemExit as stop:
            code = stop.code
        except Exception as error:
            raise AssertionError(f"{argv}: a traceback") from error
        out, err = capsys.readouterr()
        assert code in (0, 1, 2), argv
        judges = command == "doctor" or "--check" in argv  # what is wrong is what they print
        assert code == 0 or len(err.splitlines()) == 1 or (judges and out), argv
        tried += 1
    assert tried
