"""``trainmesh status`` and ``trainmesh explain``, on this machine and through etcd."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from tests.launcher.records import CHOICE, FIT, HINT, RING, graph
from tests.needs import need_root
from trainmesh.launcher.cli import main
from trainmesh.launcher.run.troubles import Told, Troubles
from trainmesh.rundir import RunDir, RunInfo, write_atomically
from trainmesh.store.base import job_prefix
from trainmesh.store.embedded import EmbeddedEtcd
from trainmesh.store.etcd import connect
from trainmesh.types import Event, Failure, JobStatus, Outcome, RankStatus
from trainmesh.wire import encode

RANK = RankStatus(
    rank=0, node="host-a", pid=4242, step=70, epoch=1, skew_s=0.004, exposed_share=0.25
)
STATUS = JobStatus(
    job="alpha",
    updated_unix_s=time.time(),
    world_size=2,
    step=70,
    step_time_s=0.0125,
    exposed_share=0.25,
    loss=1.5,
    backend="gloo",
    epoch=1,
    plan=RING,
    hint=HINT,
    choice=CHOICE,
    fits=(FIT,),
    ranks=(RANK, replace(RANK, rank=1, skew_s=None, exposed_share=None)),
    events=(Event(unix_s=1.0, step=64, kind="switch", text="step 64: all ranks switched"),),
)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("TRAINMESH_ETCD", raising=False)


def running(job: str, status: JobStatus | None, *, etcd: str = "", dead: bool = False) -> RunDir:
    """A run directory of this process (or of a dead one)."""
    info = RunInfo(
        job=job,
        pid=os.getpid(),
        etcd=etcd,
        created_unix_s=time.time(),
    )
    run = RunDir.create(info)
    if dead:
        run.release()
    if status is not None:
        write_atomically(run.status, encode(status))
    return run


def test_no_job_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 0
    assert capsys.readouterr().out == "no job is running\n"
    assert main(["status", "--json"]) == 0
    assert capsys.readouterr().out == "[]\n"


@pytest.mark.parametrize("command", ["status", "explain"])
def test_an_unknown_job_is_one_line(capsys: pytest.CaptureFixture[str], command: str) -> None:
    running("alpha", STATUS)
    assert main([command, "beta"]) == 1
    error = capsys.readouterr().err
    assert error == ("trainmesh: error: no job 'beta' is running on this machine; running: alpha\n")


def test_status_shows_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    running("alpha", STATUS)
    running("dead", replace(STATUS, job="dead"), dead=True)
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert "job alpha: 2 ranks, step 70, 12.5 ms a step, 25.0 % of it waiting" in shown
    assert "plan ring (epoch 1), loss 1.5000\n" in shown
    assert "step 64: switch: step 64: all ranks switched" in shown
    rows = [line.split() for line in shown.splitlines()]
    assert ["0", "host-a", "4242", "70", "1", "4.00", "ms", "25.0", "%"] in rows
    assert ["1", "host-a", "4242", "70", "1", "-", "-"] in rows
    assert "introduced" not in shown
    assert "dead" not in shown
    assert "\x1b" not in shown


def test_status_of_a_job_that_starts(capsys: pytest.CaptureFixture[str]) -> None:
    running("alpha", None)
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert shown == "job alpha: starting, no rank has reported yet\n"


@pytest.mark.parametrize("damaged", [b"", b"damaged", b'{"job":3}'])
def test_a_status_that_cannot_be_read_is_no_start(
    capsys: pytest.CaptureFixture[str], damaged: bytes
) -> None:
    run = running("beta", None)
    run.status.write_bytes(damaged)
    assert main(["status"]) == 0
    warning, line = capsys.readouterr().out.splitlines()
    assert warning.startswith(
        f"warning: job beta: what the job does now is not known: {run.status}:"
    )
    assert line == "job beta: nothing is known of its ranks now"


def test_a_run_directory_that_was_made_again_is_no_start(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = running("beta", None)
    Troubles(run.troubles, lambda text: None).warn("somebody has removed it")
    assert main(["status"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "job beta: nothing is known of its ranks now",
        "step 0: warning: somebody has removed it",
    ]


@pytest.mark.root
def test_a_run_directory_without_space_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need_root()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")
    run = running("alpha", STATUS)
    try:
        assert main(["status"]) == 0
        assert "space" not in capsys.readouterr().out
        try:
            (tmp_path / "fill").write_bytes(bytes(64 * 1024))
        except OSError:
            pass
        assert main(["status"]) == 0
        first, second, *_ = capsys.readouterr().out.splitlines()
        why = f"no space is left in {run.path}, so what follows may be old"
        assert first == f"warning: job alpha: {why}"
        assert second.startswith("job alpha: 2 ranks, step 70")
    finally:
        run.remove()
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_no_time_is_given_before_the_first_step(capsys: pytest.CaptureFixture[str]) -> None:
    running("alpha", replace(STATUS, step=0, step_time_s=None))
    assert main(["status"]) == 0
    assert "job alpha: 2 ranks, step 0, no step is over yet, " in capsys.readouterr().out
    assert main(["status", "--json"]) == 0
    assert "step_time_s" not in capsys.readouterr().out


def test_a_job_of_one_rank_has_nothing_to_communicate(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ranks = (replace(RANK, skew_s=None, exposed_share=None),)
    running("alpha", replace(STATUS, world_size=1, exposed_share=None, plan=None, ranks=ranks))
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert "12.5 ms a step, one rank, which has nobody to communicate with" in shown
    assert "%" not in shown
    assert main(["explain"]) == 0
    assert "one rank: there is nothing to communicate or to plan." in capsys.readouterr().out


@pytest.mark.parametrize("ahead_s", [-3600.0, 0.0, 3600.0])
@pytest.mark.parametrize("age_s", [0.5, 60.0])
def test_the_age_of_a_status_is_not_read_from_another_hosts_clock(
    capsys: pytest.CaptureFixture[str], ahead_s: float, age_s: float
) -> None:
    """The coordinator may be on a host whose clock is an hour off."""
    run = running("alpha", replace(STATUS, updated_unix_s=time.time() + ahead_s))
    write_atomically(run.status_time, str(time.monotonic() - age_s).encode())
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert ("s old: its coordinator has ended" in shown) is (age_s > 10)
    assert f", as of {age_s:.0f} s ago" in shown or age_s < 10
    assert main(["status", "--json"]) == 0
    [told] = msgspec.json.decode(capsys.readouterr().out, type=list[JobStatus])
    assert told.age_s is not None
    assert age_s <= told.age_s < age_s + 60


def test_restarts_and_what_the_launcher_saw_are_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = running("alpha", replace(STATUS, num_restarts=1))
    failure = Failure(attempt=0, rank=1, local_rank=1, exit_code=4)
    outcome = Outcome(num_failed_attempts=1, failures=(failure,))
    write_atomically(run.outcome, encode(outcome))
    ended = Event(unix_s=2.0, step=0, kind="process", text="the agent ended with signal 9")
    write_atomically(run.troubles, encode(Told(events=(ended,))))
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert "restarted 1 time\n" in shown
    assert "Attempt 1 of torchrun failed: rank 1 ended with exit code 4." in shown
    assert "process: the agent ended with signal 9" in shown
    assert main(["status", "--json"]) == 0
    [told] = msgspec.json.decode(capsys.readouterr().out, type=list[JobStatus])
    assert (told.num_restarts, told.outcome, told.events[-1]) == (1, outcome, ended)


def test_ranks_that_are_missing_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """Some run without trainmesh: the others are not "starting"."""
    running("alpha", replace(STATUS, world_size=4))
    assert main(["status"]) == 0
    assert "only 2 of the 4 ranks have introduced themselves" in capsys.readouterr().out


def test_a_plan_on_its_way_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    running("alpha", replace(STATUS, epoch=0, plan=None, loss=None))
    assert main(["status", "alpha"]) == 0
    shown = capsys.readouterr().out
    assert "plan native (epoch 0), ring (epoch 1) on its way, loss not known" in shown


def test_json_is_a_list_of_job_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    running("alpha", STATUS)
    assert main(["status", "--json"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out, type=list[JobStatus]) == [STATUS]


def test_explain_says_what_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    running("alpha", STATUS)
    assert main(["explain"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Job alpha runs ring (epoch 1) at step 70.",
        f"Why: {HINT.reason}.",
        *CHOICE.explain,
        "Measured on links of class uplink: 1.000 GB/s and 100 us a message, from 9 bucket "
        "times; planned with 1.000 GB/s.",
    ]


def test_explain_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    running("alpha", STATUS)
    assert main(["explain", "alpha", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"job", "epoch", "plan", "hint", "choice", "fits", "asked"}
    assert told["plan"]["algorithm"] == "ring"
    assert told["hint"]["reason"] == HINT.reason


def test_explain_wants_a_name_where_several_jobs_run(capsys: pytest.CaptureFixture[str]) -> None:
    running("alpha", STATUS)
    running("beta", replace(STATUS, job="beta"))
    assert main(["explain"]) == 2
    assert "several jobs are running; name one of alpha, beta" in capsys.readouterr().err
    assert main(["explain", "beta"]) == 0
    assert "Job beta runs" in capsys.readouterr().out


def test_two_jobs_of_one_name_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    """Each has an etcd of its own; launchers of one job share one, and count once."""
    for port, step in ((1001, 10), (1002, 20), (1002, 20)):
        running("alpha", replace(STATUS, step=step), etcd=f"http://127.0.0.1:{port}")
    assert main(["status", "alpha"]) == 0
    shown = capsys.readouterr().out
    for port, step in ((1001, 10), (1002, 20)):
        which = f"this one is of launcher {os.getpid()}; --etcd http://127.0.0.1:{port} means it"
        assert f"warning: job alpha: another job of this name runs here; {which}\n" in shown
        assert shown.count(f"job alpha: 2 ranks, step {step},") == 1
    assert main(["explain", "alpha"]) == 2
    assert "several jobs called alpha run here; pass --etcd" in capsys.readouterr().err


def test_an_etcd_that_does_not_answer_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--etcd", "http://127.0.0.1:1"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("trainmesh: error: etcd")
    assert error.count("\n") == 1


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[str]:
    server = EmbeddedEtcd(tmp_path / "etcd", tmp_path / "etcd.log")
    server.start()
    try:
        server.wait_ready(30)
        yield server.url
    finally:
        server.stop()


@pytest.mark.etcd
def test_jobs_of_other_machines_are_found_in_etcd(
    etcd: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = connect(etcd)
    try:
        for job in ("alpha", "beta"):
            store.put(f"{job_prefix(job)}status", encode(replace(STATUS, job=job)))
        store.put(f"{job_prefix('alpha')}graph", encode(graph()))
        store.put(f"{job_prefix('alpha')}reports/n", b"{}")
        store.put(f"{job_prefix('blank')}status", b"")
    finally:
        store.close()
    running("local", STATUS)
    assert main(["status", "--etcd", etcd]) == 0
    shown = capsys.readouterr().out
    assert "job alpha" in shown
    assert "job beta" in shown
    assert "job local" not in shown
    assert "warning: job blank: what the job does now is not known" in shown
    for job in ("alpha", "beta"):
        assert f"warning: job {job}: what follows is old: its coordinator has ended" in shown
    store = connect(etcd)
    try:
        store.put(f"{job_prefix('alpha')}leader/1", b"n")
    finally:
        store.close()
    assert main(["status", "alpha", "--etcd", etcd]) == 0
    assert "warning" not in capsys.readouterr().out
    assert main(["status", "gamma", "--etcd", etcd]) == 1
    assert (
        f"no job 'gamma' is running in {etcd}; running: alpha, beta, blank"
        in capsys.readouterr().err
    )
    assert main(["explain", "beta", "--etcd", etcd]) == 0
    assert "Job beta runs ring" in capsys.readouterr().out

    picture = tmp_path / "graph.svg"
    assert main(["topology", "show", "alpha", "--etcd", etcd, "--draw", str(picture)]) == 0
    assert "4 ranks, 2 other nodes, 10 directed links" in capsys.readouterr().out
    assert 'class="hot"' in picture.read_text()
    assert main(["topology", "show", "beta", "--etcd", etcd]) == 1
    assert "job beta has no link graph before" in capsys.readouterr().err


@pytest.mark.etcd
def test_the_graph_of_a_local_job_comes_from_its_own_etcd(
    etcd: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = connect(etcd)
    try:
        store.put(f"{job_prefix('alpha')}graph", encode(graph()))
    finally:
        store.close()
    running("alpha", STATUS, etcd=etcd)
    assert main(["topology", "show", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["links"]) == 10
