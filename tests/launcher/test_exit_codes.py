"""docs/exit_codes.md: one rule for all commands, and each mistake in the words of its command."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest

from trainmesh.launcher.cli import COMMANDS, build_parser, main
from trainmesh.launcher.lab import arguments as lab_arguments

FILE = "FILE"
READERS = {
    "launch": f"launch --topology {FILE} s.py",
    "launch --dry-run": f"launch --dry-run --topology {FILE} s.py",
    "lab run": f"lab run --topology {FILE} s.py",
    "lab stream": f"lab stream --topology {FILE} a b",
    "plan": f"plan --graph {FILE}",
    "topology show": f"topology show --file {FILE}",
    "topology validate": f"topology validate {FILE}",
    "topology import nccl-topo": f"topology import nccl-topo {FILE}",
    "topology import nccl-graph": f"topology import nccl-graph {FILE}",
    "topology import nvidia-smi": f"topology import nvidia-smi {FILE}",
    "topology import nccl-tests": f"topology import nccl-tests {FILE}",
    "topology import hostfile": f"topology import hostfile {FILE}",
    "topology import slurm-topology": f"topology import slurm-topology {FILE}",
    "topology import --merge": f"topology import hostfile hosts --merge {FILE}",
    "trace": f"trace 0 1 --file {FILE}",
    "serve": f"serve --config {FILE}",
    "serve --check": f"serve --check --config {FILE}",
    "report": f"report {FILE}",
    "replay": f"replay {FILE}",
    "why": f"why x --ledger {FILE}",
}
"""Every command that reads what the user names."""
NEED_A_JOB = {
    "explain": "explain",
    "topology show": "topology show",
    "topology probe": "topology probe",
    "ping": "ping node",
    "trace": "trace 0 1",
}
NEED_NOTHING = {"status", "endpoints", "doctor", "lab check", "lab clean"}
NEED_AN_ETCD = {"quarantine list", "quarantine add", "quarantine release"}
BAD = ("none", "latin", "bad", "x" * 300, "bad/file", "")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("TRAINMESH", "XDG"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Path("latin").write_bytes(b"nodes: \xff\xfe\xe9\n")
    Path("bad").write_text("nodes: [\n")
    Path("hosts").write_text("a slots=2\nb slots=2\n")
    Path("s.py").touch()


def ended(words: list[str]) -> object:
    try:
        return main(words)
    except SystemExit as stop:  # argparse ends this way
        return stop.code


def leaves(parser: argparse.ArgumentParser, name: str = "") -> Iterator[str]:
    """Every command and inner command."""
    groups = [action for action in parser._actions if hasattr(action.choices, "values")]
    inner = [group for group in groups if isinstance(group, argparse._SubParsersAction)]
    if not inner:
        yield name
    for group in inner:
        for word, below in group.choices.items():
            yield from leaves(below, f"{name} {word}".strip())


@pytest.mark.torch
def test_every_command_is_looked_at() -> None:
    found = set()
    for command in COMMANDS:
        inner = [leaf for leaf in leaves(build_parser(command)) if leaf.split()[0] == command]
        found.update(inner)
    looked_at = {name.split(" --")[0] for name in (*READERS, *NEED_A_JOB)}
    looked_at = {"topology import" if "import" in name else name for name in looked_at}
    assert found == looked_at | NEED_NOTHING | NEED_AN_ETCD


def all_parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from all_parsers(below)


@pytest.mark.torch
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_inner_command_has_debug(command: str) -> None:
    own = [one for one in all_parsers(build_parser(command)) if command in one.prog.split()]
    assert own
    for parser in own:
        # lab run hands its words to a parser of its own.
        parser = lab_arguments._everything() if parser.prog == "trainmesh lab run" else parser
        assert "--debug" in parser._option_string_actions, parser.prog


@pytest.mark.parametrize(
    "words",
    [
        "--debug topology validate none",
        "topology --debug validate none",
        "topology validate --debug none",
        "topology validate none --debug",
        "topology show --file none --debug",
        "topology import hostfile none --debug",
        "lab run --debug --topology none s.py",
        "lab stream --debug --topology none a b",
    ],
)
def test_debug_may_stand_anywhere(words: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert ended(words.split()) == 2
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1].startswith("trainmesh: error: ")
    assert "none: No such file or directory" in lines[-1]
    assert ended([word for word in words.split() if word != "--debug"]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_no_driver_is_1(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing that was written is wrong: this machine has none."""

    def not_there() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", not_there)
    assert ended(["topology", "import", "nvml"]) == 1
    assert capfd.readouterr().err.startswith("trainmesh: error: NVML: ")


@pytest.mark.torch
@pytest.mark.parametrize("name", BAD, ids=["missing", "latin", "bad", "long", "below", "empty"])
@pytest.mark.parametrize("command", READERS.values(), ids=READERS)
def test_a_bad_file_is_2(command: str, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    words = [name if word == FILE else word for word in command.split()]
    assert ended(words) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("tail", ["", "--json"])
@pytest.mark.parametrize("command", NEED_A_JOB.values())
def test_no_job_is_1(command: str, tail: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert ended([*command.split(), *tail.split()]) == 1
    assert capfd.readouterr() == ("", "trainmesh: error: no job is running on this machine\n")


@pytest.mark.parametrize("command", [*NEED_A_JOB.values(), "status"])
def test_a_job_that_is_not_there_is_1(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert ended([*command.split(), "other"]) == 1
    assert "no job 'other' is running" in capfd.readouterr().err


@pytest.mark.parametrize("command", ["status", "endpoints"])
def test_a_list_of_nothing_is_an_answer(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert ended([command]) == 0
    assert capfd.readouterr().out.startswith("no ")


@pytest.mark.parametrize("command", [*NEED_A_JOB.values(), "status", "doctor", "quarantine list"])
@pytest.mark.parametrize("url", ["nonsense", "", "http://"])
def test_a_bad_address_is_2(command: str, url: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert ended([*command.split(), "--etcd", url]) == 2
    assert f"argument --etcd: etcd URL {url!r} must be http://" in capfd.readouterr().err


def test_a_bad_address_in_the_environment_is_2(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRAINMESH_ETCD", "nonsense")
    assert ended(["status"]) == 2
    assert "etcd URL 'nonsense' must be http://" in capfd.readouterr().err


@pytest.mark.torch
@pytest.mark.parametrize(
    ("command", "helper"),
    [
        ("lab clean foo", "trainmesh lab clean"),
        ("lab run --topology bad --nosuch s.py", "trainmesh lab run"),
        ("launch --nosuch s.py", "trainmesh launch"),
        ("topology validate bad bad", "trainmesh topology validate"),
        ("topology import hostfile hosts --nosuch", "trainmesh topology import"),
        ("quarantine list foo", "trainmesh quarantine list"),
        ("lab", "trainmesh lab"),
        ("status a b", "trainmesh status"),
        ("nosuch", "trainmesh"),
    ],
)
def test_the_help_that_is_named_is_the_commands_own(
    command: str, helper: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert ended(command.split()) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"{helper}: error: ")
    assert err.endswith(f"(see {helper} --help)\n")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("topology show --file g.yaml --draw x.png", "'x.png': .png can't be written, only .svg"),
        ("plan --graph g.yaml --draw x.PNG", "'x.PNG': .PNG can't be written, only .svg"),
        ("topology import hostfile hosts --output x.xml", "only .yaml and .yml and .json"),
        ("topology probe --output x.svg", "only .yaml and .yml and .json"),
        ("plan --graph g.yaml --draw x.svg/", "'x.svg/' names a folder; give the name of a file"),
        ("topology import hostfile hosts --output x.yaml/.", "'x.yaml/.' names a folder"),
    ],
)
def test_a_format_that_is_not_written_is_refused(
    command: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert ended(command.split()) == 2
    assert words in capfd.readouterr().err
    assert not list(Path.cwd().glob("x.*"))


@pytest.mark.parametrize("sm", ["999", "8", "91"])
def test_a_compute_capability_that_no_gpu_has_is_refused(
    sm: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert ended(["topology", "import", "nvidia-smi", "m.txt", "--sm", sm]) == 2
    err = capfd.readouterr().err
    assert f"argument --sm: invalid choice: {sm} (choose from " in err
    assert "80" in err.split("choose from")[1]


@pytest.mark.parametrize("name", ["g.json", "g.yaml", "g.yml", "g"])
def test_a_graph_is_written_as_its_name_says(name: str) -> None:
    assert ended(["topology", "import", "hostfile", "hosts", "--output", name]) == 0
    assert Path(name).read_text().startswith("{") == (name == "g.json")
    assert ended(["topology", "validate", name]) == 0
