"""The command line: a fixed set of options, lazy imports, errors in one line."""

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from trainmesh.launcher.cli import COMMANDS, build_parser, main

ROOT = Path(__file__).parent.parent.parent

LAUNCH_OPTIONS = {
    "--cadence",
    "--compression",
    "--fusion",
    "--debug",
    "--dry-run",
    "--etcd",
    "--insecure-etcd",
    "--job",
    "--margin",
    "--plan",
    "--progress",
    "--report",
    "--topology",
}
"""A new option is a decision: add it here and to the documentation."""


def options(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


def command_parser(command: str) -> argparse.ArgumentParser:
    chosen = build_parser(command)._subparsers
    assert chosen is not None
    parsers = chosen._group_actions[0].choices
    assert isinstance(parsers, dict)
    parser = parsers[command]
    assert isinstance(parser, argparse.ArgumentParser)
    return parser


@pytest.mark.torch
def test_launch_has_torchruns_options_and_ours() -> None:
    from torch.distributed.run import get_args_parser

    torchruns = options(get_args_parser())
    ours = options(command_parser("launch"))
    assert torchruns <= ours
    assert ours - torchruns == LAUNCH_OPTIONS
    assert not LAUNCH_OPTIONS & torchruns


def test_the_commands_are_these() -> None:
    assert set(COMMANDS) == {
        "launch",
        "report",
        "status",
        "topology",
        "ping",
        "trace",
        "plan",
        "explain",
        "lab",
        "serve",
        "quarantine",
        "endpoints",
        "why",
        "replay",
        "doctor",
    }


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["status", "--help"]])
def test_only_launch_imports_torch(argv: list[str]) -> None:
    done = python(
        "import sys, atexit; from trainmesh.launcher.cli import main\n"
        "atexit.register(lambda: print({'torch', 'grpc'} & set(sys.modules), file=sys.stderr))\n"
        f"main({argv})"
    )
    assert (done.returncode, done.stderr) == (0, "set()\n")
    assert done.stdout


@pytest.mark.torch
def test_launch_never_imports_grpc() -> None:
    code = (
        "import sys; from trainmesh.launcher.cli import main\n"
        "main(['launch', '--dry-run', '--etcd', 'http://127.0.0.1:1', '-m', 'this'])\n"
        "print({'grpc', 'etcd3', 'networkx'} & set(sys.modules))"
    )
    assert python(code).stdout.endswith("\nset()\n")


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["--nonsense"], ["status", "--nonsense"]])
def test_a_usage_error_is_one_line_and_exit_code_2(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert out == ""
    assert err.startswith("trainmesh")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("where", ["before", "after", "environment", "nowhere"])
def test_debug_shows_the_traceback(
    where: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRAINMESH_DEBUG", raising=False)
    if where == "environment":
        monkeypatch.setenv("TRAINMESH_DEBUG", "1")
    before, after = (["--debug"] if where == word else [] for word in ("before", "after"))
    code = main([*before, "launch", *after, "no-such-script.py"])
    lines = capsys.readouterr().err.splitlines()
    assert code == 1
    assert lines[-1].startswith("trainmesh: error: no such file: no-such-script.py")
    assert ("Traceback" in lines[0]) == (where != "nowhere")
    assert len(lines) == 1 or where != "nowhere"


def test_a_closed_pipe_is_quiet() -> None:
    done = subprocess.run(
        f"{sys.executable} -m trainmesh --help | true; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.returncode in (0, 1)  # 0: the pipe was still open


HOSTS = "tests/topology/importers/data/hostfile_mpich.txt"
PRINTING = [
    "status",
    "endpoints",
    "lab clean",
    "doctor",
    "topology show --file examples/two_racks.yaml",
    "plan --graph examples/two_racks.yaml",
    "plan --json --graph examples/two_racks.yaml",
    f"topology import hostfile {HOSTS}",
    "--help",
    "launch --help",
    "--version",
]


@pytest.mark.torch
@pytest.mark.parametrize("words", PRINTING)
def test_output_that_can_not_be_written_is_one_line(words: str, tmp_path: Path) -> None:
    """However Python writes: in blocks, by rich's flushes, or each print at once, which argparse
    forgets."""
    for unbuffered in ("", "1"):
        with (tmp_path / "full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "trainmesh", *words.split()],
                cwd=ROOT,
                env={
                    **os.environ,
                    "PYTHONUNBUFFERED": unbuffered,
                    "XDG_RUNTIME_DIR": str(tmp_path),
                },
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
            )
        assert done.returncode == 1
        errors = [line for line in done.stderr.splitlines() if "error" in line]
        assert errors == ["trainmesh: error: standard output: File too large"]


def test_a_stream_needs_two_hosts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "stream", "--topology", "none.yaml", "h0", "h0"]) == 2
    assert capsys.readouterr().err == (
        "trainmesh: error: SRC and DST are both 'h0'; a stream needs two hosts\n"
    )


@pytest.mark.parametrize("name", ["x" * 5000, "none", "file/none", "loop"])
def test_a_ledger_that_cannot_be_read_is_one_line(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("loop").symlink_to("loop")
    assert main(["replay", name]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
