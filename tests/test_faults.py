"""Our own parts are killed in mid-run: the job finishes with the same losses, to the bit."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.launchjob import JOBS, LAUNCH, TORCHRUN, Place, place, wait_for
from trainmesh.store.address import parse_url
from trainmesh.store.embedded import EmbeddedEtcd
from trainmesh.store.rpc import Connection, rpc

pytestmark = [pytest.mark.torch, pytest.mark.etcd]

SCRIPT = str(JOBS / "paced.py")
WORDS = {
    "coordinator": "trainmesh.coordinator.process",
    "agent": "trainmesh.agent.process",
    "etcd": "--listen-client-urls",
}


def outcome(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(("losses", "state"))]


@pytest.fixture(scope="module")
def expected() -> list[str]:
    """What plain torchrun computes."""
    with place() as here:
        done = here.run(*TORCHRUN, "--nproc-per-node", "2", SCRIPT, SECONDS="0")
    assert done.returncode == 0, done.stderr
    lines = outcome(done.stdout)
    assert len(lines) == 2
    return lines


@pytest.fixture
def here() -> Iterator[Place]:
    with place() as found:
        yield found


def status(here: Place) -> dict[str, Any]:
    for path in here.path.glob("trainmesh/*/status.json"):
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    return {}


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    return out, err


@pytest.mark.parametrize("victims", [["coordinator"], ["agent"], ["etcd"], [*WORDS]])
def test_killing_our_parts_changes_nothing(
    here: Place, expected: list[str], victims: list[str]
) -> None:
    process = here.start(*LAUNCH, "--nproc-per-node", "2", SCRIPT, SECONDS="9")
    wait_for(lambda: status(here).get("step", 0) > 5)
    for victim in victims:
        pids = here.processes(WORDS[victim])
        assert pids, f"no {victim} is running"
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    out, err = finish(process)
    assert outcome(out) == expected
    for victim in victims:
        assert f"the {victim} ended with signal 9 and is started again" in err
    assert here.processes() == {}
    assert here.files() == []


@pytest.mark.parametrize("victim", [*WORDS])
def test_the_part_that_was_killed_is_back_at_work(here: Place, victim: str) -> None:
    process = here.start(*LAUNCH, "--nproc-per-node", "2", SCRIPT, SECONDS="20")
    wait_for(lambda: status(here).get("step", 0) > 5)
    for pid in here.processes(WORDS[victim]):
        os.kill(pid, signal.SIGKILL)
    seen = status(here)["step"]
    wait_for(lambda: status(here)["step"] > seen + 10)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert here.processes() == {}
    assert here.files() == []


def test_etcd_gone_for_good_costs_the_job_nothing(
    here: Place, expected: list[str], tmp_path: Path
) -> None:
    """An etcd of the user's that goes away while the job runs and never comes back."""
    etcd = EmbeddedEtcd(tmp_path / "data", tmp_path / "log")
    etcd.start()
    try:
        etcd.wait_ready(10)
        process = here.start(
            *LAUNCH, "--nproc-per-node", "2", "--etcd", etcd.url, SCRIPT, SECONDS="6"
        )
        wait_for(lambda: status(here).get("step", 0) > 5)
        etcd.stop()
        out, _ = finish(process)
    finally:
        etcd.stop()
    assert outcome(out) == expected
    assert here.processes() == {}
    assert here.files() == []


def test_a_full_etcd_is_said_everywhere_and_its_end_too(here: Place, tmp_path: Path) -> None:
    """One that takes no writes, as after "mvcc: database space exceeded", but still answers."""
    etcd = EmbeddedEtcd(tmp_path / "data", tmp_path / "log")
    etcd.start()
    connection = Connection(*parse_url(etcd.url)[:2], timeout_s=20)
    maintenance = rpc.MaintenanceStub(connection._client.channel)

    def alarm(action: int) -> None:
        request = rpc.AlarmRequest(action=action, memberID=0, alarm=rpc.NOSPACE)
        connection.call(maintenance.Alarm, request)

    try:
        etcd.wait_ready(20)
        flags = ["--nproc-per-node", "2", "--etcd", etcd.url, "--report", "report"]
        process = here.start(*LAUNCH, *flags, SCRIPT, SECONDS="24")
        wait_for(lambda: status(here).get("step", 0) > 5)
        alarm(rpc.AlarmRequest.ACTIVATE)
        wait_for(lambda: list(here.path.glob("trainmesh/*/troubles.json")))
        shown = here.run(sys.executable, "-m", "trainmesh", "status").stdout
        other = ["--etcd", etcd.url, "--job", "other", "--no-python", "echo", "trained"]
        done = here.run(*LAUNCH, *other)  # a job that starts when etcd is full already
        assert "etcd at 127.0.0.1:" in shown
        assert "its database is full: compact and defragment it" in shown
        alarm(rpc.AlarmRequest.DEACTIVATE)
        seen = status(here)["step"]
        wait_for(lambda: status(here)["step"] > seen + 10)
        _, err = finish(process)
    finally:
        connection.close()
        etcd.stop()
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr
    assert "its database is full" in done.stderr.splitlines()[0]
    assert "training goes on" in done.stderr.splitlines()[0]
    lines = [line for line in err.splitlines() if "its database is full" in line]
    assert [line.split()[1] for line in lines] == ["warning:", "over:"]
    report = json.loads((here.path / "report" / "report.json").read_text())
    texts = [event["text"] for event in report["run"]["events"]]
    assert sum("its database is full" in text for text in texts) == 2
    assert here.files() == []
