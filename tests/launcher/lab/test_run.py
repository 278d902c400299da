"""Jobs in a real lab, and what is left of it however it ends: nothing."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launchjob import JOBS, Place, wait_for
from trainmesh.launcher.lab import Lab, LabJob, run_job

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("lab_here")]
LAB = [sys.executable, "-m", "trainmesh", "lab"]
WAITS = ["--no-python", "sh", "-c", "echo up; sleep 1000"]
Star = Callable[..., Path]


def started(here: Place, path: Path) -> subprocess.Popen[str]:
    """A lab in which the ranks of both hosts run."""
    runner = here.start(*LAB, "run", "--topology", str(path), *WAITS)
    assert runner.stdout is not None
    lines = [runner.stdout.readline() for _ in range(2)]
    assert sorted(lines) == ["h0 | up\n", "h1 | up\n"]
    return runner


@pytest.mark.torch
@pytest.mark.etcd
def test_a_job_runs_on_its_hosts_with_the_timeline_of_its_file(here: Place, star: Star) -> None:
    path = star(
        {"h0": 100, "h1": 100},
        "timeline:",
        "  - {at_step: 5, link: [h1, sw], bandwidth_mbps: 50}",
    )
    words = ["--topology", str(path), "--report", "out", str(JOBS / "paced.py")]
    done = here.run(*LAB, "run", *words, SECONDS="6")
    assert done.returncode == 0, done.stderr
    assert "h0 | step 110\n" in done.stdout
    assert all(line.startswith(("h0 | ", "h1 | ")) for line in done.stdout.splitlines())
    found = re.search(r"step (\d+): link h1-sw: 50 Mbit/s", done.stderr)
    assert found, done.stderr
    assert int(found[1]) >= 5
    assert (here.path / "out" / "report.json").exists()
    assert here.processes() == {}
    assert here.files() == []


@pytest.mark.torch
def test_a_lab_whose_runner_is_killed_leaves_a_directory_that_clean_removes(
    here: Place, star: Star
) -> None:
    runner = started(here, star({"h0": 100, "h1": 100}))
    assert here.processes("sleep 1000")
    runner.kill()
    runner.communicate()
    wait_for(lambda: not here.processes(), timeout_s=10)
    assert [name.startswith("trainmesh/lab-") for name in here.files()] == [True]
    cleaned = here.run(*LAB, "clean")
    assert (cleaned.returncode, cleaned.stdout) == (0, "removed 1 lab\n")
    assert here.files() == []


@pytest.mark.torch
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_lab_and_nothing_is_left(here: Place, star: Star, number: int) -> None:
    runner = started(here, star({"h0": 100, "h1": 100}))
    runner.send_signal(number)
    _, errors = runner.communicate(timeout=30)
    assert runner.returncode == -number
    assert "Traceback" not in errors
    assert here.processes() == {}
    assert here.files() == []


@pytest.mark.torch
def test_the_exit_code_is_the_jobs(here: Place, star: Star) -> None:
    path = star({"h0": 100, "h1": 100})
    words = ["--no-python", "sh", "-c", "test $RANK = 1"]
    done = here.run(*LAB, "run", "--topology", str(path), *words)
    assert done.returncode == 1
    assert "h0 | " in done.stdout
    assert here.files() == []


def test_a_host_that_fails_ends_the_job_of_the_others(star: Star) -> None:
    lines: list[bytes] = []
    with Lab(star({"h0": 100, "h1": 100})) as lab:
        commands = [["sleep", "1000"], ["sh", "-c", "echo no; exit 3"]]
        job = LabJob(lab, commands, {}, lambda host, line: lines.append(line))
        assert job.wait(30) == 3
    assert lines == [b"no\n"]


@pytest.mark.torch
def test_torchrun_runs_in_a_lab_for_comparison(star: Star) -> None:
    with Lab(star({"h0": 100, "h1": 100})) as lab:
        words = ["sh", "-c", "echo $RANK $WORLD_SIZE $GLOO_SOCKET_IFNAME $X"]
        result = run_job(
            lab, words, flags=["--no-python"], env={"X": "x"}, launcher="torchrun", timeout_s=60
        )
    assert result.returncode == 0
    # Torchrun may complain afterwards: its store ends with the first host's launcher.
    first_lines = {name: text.splitlines()[0] for name, text in result.output.items()}
    assert first_lines == {"h0": "0 2 eth0 x", "h1": "1 2 eth0 x"}


@pytest.mark.skipif(os.geteuid() != 0, reason="all of the lab's tests run without root then")
def test_an_ordinary_user_has_a_lab_too(here: Place, star: Star) -> None:
    user = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
    allowed = subprocess.run([*user, "unshare", "--user", "true"], capture_output=True, check=False)
    if allowed.returncode != 0:
        pytest.skip(allowed.stderr.decode())
    path = star({"h0": 100, "h1": 100}, alpha_us=300)
    words = ["--topology", str(path), "h0", "h1", "--bytes", "3MB"]
    done = here.run(*user, *LAB, "stream", *words)
    assert done.returncode == 0, done.stderr
    assert "h0 -> h1: " in done.stdout
    assert here.processes() == {}
    assert here.files() == []


def test_a_kernel_that_refuses_is_said_in_one_line(here: Place, star: Star) -> None:
    path = star({"h0": 100, "h1": 100})
    words = [*LAB, "stream", "--topology", str(path), "h0", "h1"]
    no_more = 'echo 0 > /proc/sys/user/max_net_namespaces && exec "$@"'
    done = here.run("unshare", "--user", "--map-root-user", "sh", "-c", no_more, "sh", *words)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "trainmesh: error: the kernel doesn't allow a lab: unshare failed: No space left on "
        "device; trainmesh lab check says more"
    ]
    assert here.files() == []
