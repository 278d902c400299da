"""The words of ``trainmesh lab run``, and what other actions print."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.needs import need_open_files
from trainmesh.launcher.cli import main
from trainmesh.launcher.lab import tools
from trainmesh.launcher.lab.arguments import parse
from trainmesh.launcher.lab.network.ready import has_input
from trainmesh.launcher.run.target import NothingToRun

SCRIPT = str(Path(__file__).parents[2] / "jobs" / "paced.py")
Star = Callable[..., Path]


def test_hosts_get_what_is_not_the_labs_and_the_script_keeps_its_words() -> None:
    words = ["--plan", "ring", "--topology", "f.yaml", "--nproc-per-node=2", "--report", "out"]
    words += ["--no-declare", "--max-restarts", "3", SCRIPT, "--topology", "its", "--", "-x"]
    given = parse(words)
    assert given.flags == ("--plan", "ring", "--max-restarts", "3")
    assert given.program == (SCRIPT, "--topology", "its", "--", "-x")
    assert (given.topology, given.report) == (Path("f.yaml"), Path("out"))
    assert (given.num_ranks_a_host, given.declare, given.progress) == (2, False, "auto")


def test_a_dash_before_the_script_is_no_flag() -> None:
    given = parse(["--topology", "f.yaml", "--debug", "--", SCRIPT, "1"])
    assert (given.flags, given.program, given.debug) == ((), (SCRIPT, "1"), True)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--nnodes", "2"], "--nnodes: the topology file says how many hosts there are"),
        (["--rdzv_endpoint", "a:1"], "--rdzv-endpoint: the lab's hosts meet by themselves"),
        (["--etcd", "http://a:1"], "--etcd: the lab has an etcd of its own"),
        (["--nproc-per-node", "gpu"], "--nproc-per-node gpu: a lab needs a number"),
        (["-r", "3"], "--log-dir is missing"),
        (["--topo", "f.yaml"], "--topo"),
    ],
)
def test_flags_that_a_lab_decides_are_refused(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--topology", "f.yaml", *words, SCRIPT])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert complaint in lines[0]


def test_a_topology_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([SCRIPT])
    assert "--topology is missing" in capsys.readouterr().err


def test_a_script_must_be_there() -> None:
    with pytest.raises(NothingToRun, match=r"no such file: nope\.py"):
        parse(["--topology", "f.yaml", "nope.py"])


def test_a_dry_run_says_what_would_be_built(star: Star, capsys: pytest.CaptureFixture[str]) -> None:
    change = "  - {at_step: 7, link: [h0, sw], down: true}"
    path = star({"h0": 80, "h1": 40}, "timeline:", change, alpha_us=300)
    assert main(["lab", "run", "--topology", str(path), "--dry-run", SCRIPT]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "host h0: ranks 0",
        "host h1: ranks 1",
        "link h0-sw: 80 Mbit/s, 300 us",
        "link h1-sw: 40 Mbit/s, 300 us",
        "at step 7: link h0-sw: down",
    ]


def test_the_number_of_ranks_must_be_the_files(
    star: Star, capsys: pytest.CaptureFixture[str]
) -> None:
    path = star({"h0": 80, "h1": 40})
    words = ["--topology", str(path), "--nproc-per-node", "2", SCRIPT]
    assert main(["lab", "run", *words]) == 2
    assert "--nproc-per-node 2: host 'h0'" in capsys.readouterr().err


def test_clean_says_that_nothing_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert main(["lab", "clean"]) == 0
    assert capsys.readouterr().out == "nothing was left\n"


@pytest.mark.root
@pytest.mark.usefixtures("lab_here")
def test_check_says_that_this_machine_can(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "check"]) == 0
    assert capsys.readouterr().out.endswith("this machine can run a lab\n")


@pytest.mark.root
@pytest.mark.usefixtures("lab_here")
def test_an_ordinary_users_path_is_enough(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Debian's ``tc`` is in ``/usr/sbin``, which only root's shell looks in."""
    monkeypatch.setenv("PATH", "/usr/local/bin:/usr/bin:/bin")
    assert main(["lab", "check"]) == 0, capsys.readouterr().err


@pytest.mark.starts
def test_check_says_what_is_missing_and_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(tools, "SYSTEM_FOLDERS", ())
    assert main(["lab", "check"]) == 1
    found = capsys.readouterr()
    assert "no lab here: no program unshare: apt-get install util-linux; " in found.err
    assert "no program tc: apt-get install iproute2" in found.err


def test_input_is_seen_on_any_file_descriptor() -> None:
    """``select`` refuses those beyond 1 023, which a process with many connections has."""
    need_open_files(1101)
    reader, writer = os.pipe()
    high = fcntl.fcntl(reader, fcntl.F_DUPFD, 1100)
    try:
        with os.fdopen(high, "rb") as file:
            assert not has_input(file, 0.01)
            os.write(writer, b"x")
            assert has_input(file, 5)
    finally:
        os.close(reader)
        os.close(writer)
