"""Run directories: private, atomic, swept when their owner is gone."""

import errno
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec import structs

from trainmesh.owned import this_machine
from trainmesh.places import runs_root
from trainmesh.rundir import (
    RunDir,
    RunInfo,
    job_slug,
    socket_address,
)

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def info() -> RunInfo:
    return RunInfo(job="a job", pid=os.getpid(), etcd="", created_unix_s=time.time())


def made_by_another(*before: str) -> tuple[Path, subprocess.Popen[str]]:
    """A run directory of a process that lives; ``before``: what its command begins with."""
    code = (
        "import os, time; from trainmesh.rundir import RunDir, RunInfo; "
        "run = RunDir.create(RunInfo(job='other', pid=os.getpid(), etcd='', created_unix_s=1.0)); "
        "print(run.path, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [*before, sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return Path(process.stdout.readline().strip()), process


def as_if_of(run: Path, **changes: object) -> None:
    """Write into the lock file of ``run`` that its owner runs on another machine."""
    holder = json.loads((run / "lock").read_text())
    holder["machine"].update(changes)
    (run / "lock").write_text(json.dumps(holder))


def test_a_run_directory_is_private_and_names_its_owner() -> None:
    run = RunDir.create(info())
    assert run.path.stat().st_mode & 0o077 == 0
    assert [(r.path, i.job) for r, i in RunDir.live()] == [(run.path, "a job")]
    run.remove()
    assert RunDir.live() == []
    assert not runs_root().exists(), "the root goes with the last run"


def test_sweep_removes_only_what_dead_owners_left() -> None:
    mine = RunDir.create(info())
    path, process = made_by_another()
    with process:
        assert [run.path for run, _ in RunDir.live()] == [path, mine.path]
        assert RunDir.sweep() == []
        process.kill()
    assert [run.path for run, _ in RunDir.live()] == [mine.path]
    assert RunDir.sweep() == [path]
    assert mine.path.exists()
    assert RunDir.sweep() == []


def test_a_job_in_another_pid_namespace_is_not_swept() -> None:
    """Its process id means another process here, or none: only its lock tells."""
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.getuid() != 0 or subprocess.run([*unshare, "true"], check=False).returncode != 0:
        pytest.skip("needs root and unshare, to make a PID namespace")
    path, process = made_by_another(*unshare)
    with process:
        assert json.loads((path / "lock").read_text())["pid"] < 10
        assert RunDir.sweep() == []
        assert [run.path for run, _ in RunDir.live()] == [path]
        process.kill()
        deadline_s = time.monotonic() + 20
        while not RunDir.sweep():  # the kernel ends the namespace's processes in its own time
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
    assert not path.exists()


OTHER_HOST = {"boot_id": "another", "host": "another"}
BEFORE_BOOT = {"boot_id": "another", "booted_unix_s": 1.0}


@pytest.mark.parametrize(
    ("changes", "is_swept"),
    [
        ({}, True),
        (OTHER_HOST, False),
        (BEFORE_BOOT, True),
        ({**BEFORE_BOOT, "host": "another"}, False),
        ({**BEFORE_BOOT, "machine_id": "another"}, False),
        ({"boot_id": "another", "booted_unix_s": 1e11}, False),
    ],
)
def test_another_hosts_directory_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], is_swept: bool
) -> None:
    """Nobody holds the lock, but only on this machine does that say that its owner has died."""
    here = structs.replace(this_machine(), machine_id="this")
    monkeypatch.setattr("trainmesh.owned.this_machine", lambda: here)
    run = RunDir.create(info())
    run.release()
    as_if_of(run.path, **changes)
    assert RunDir.live() == []
    assert (RunDir.sweep() == [run.path]) is is_swept


def test_a_machine_without_an_id_is_not_taken_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = structs.replace(this_machine(), machine_id="")
    monkeypatch.setattr("trainmesh.owned.this_machine", lambda: here)
    run = RunDir.create(info())
    run.release()
    as_if_of(run.path, **BEFORE_BOOT)
    assert RunDir.sweep() == []


def test_without_locks_nothing_is_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Lustre that is mounted without them."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "not implemented")

    with monkeypatch.context() as patched:
        patched.setattr("fcntl.flock", refuse)
        run = RunDir.create(info())
    run.release()
    assert RunDir.sweep() == []
    assert [found.path for found, _ in RunDir.live()] == [run.path]


def test_the_lock_is_not_passed_on_to_children() -> None:
    run = RunDir.create(info())
    with subprocess.Popen(["sleep", "60"], close_fds=False) as child:
        run.release()
        assert RunDir.sweep() == [run.path]
        child.kill()


def test_torchruns_logs_go_with_a_dead_launch_unless_they_hold_anything(tmp_path: Path) -> None:
    empty, full, foreign = (tmp_path / f"torchelastic_{name}" for name in "abc")
    for folder in (empty, full, foreign):
        (folder / "none_x" / "attempt_0" / "0").mkdir(parents=True)
        (folder / "none_x" / "attempt_0" / "0" / "error.json").touch()
    (full / "error.json").write_text("{}")
    live = RunDir.create(info())
    live.note_logs(str(empty))
    assert RunDir.sweep() == []
    live.release()
    other = RunDir.create(info())
    other.note_logs(str(full))
    other.release()
    assert set(RunDir.sweep()) == {live.path, other.path, empty}
    assert (full.exists(), foreign.exists()) == (True, True)


@pytest.mark.parametrize("length", [40, 200])
def test_a_socket_has_a_name_however_deep_its_directory_is(tmp_path: Path, length: int) -> None:
    path = tmp_path / ("x" * length) / "agent.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inlet:
        with socket_address(path) as address:
            assert len(address) <= 107
            inlet.bind(address)
        before = len(os.listdir("/proc/self/fd"))
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as outlet,
            socket_address(path) as address,
        ):
            outlet.sendto(b"report", address)
        assert inlet.recv(100) == b"report"
        assert len(os.listdir("/proc/self/fd")) == before
    assert path.is_socket()


def test_a_damaged_owner_file_is_left_alone() -> None:
    run = RunDir.create(info())
    run.release()
    run.owner.write_bytes(b"{")
    assert run.info() is None
    assert RunDir.sweep() == []
    assert RunDir.live() == []


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("a/b c", "a-b-c"),
        ("../../x; rm -rf ~", "x-rm--rf"),
        ("", "job"),
        ("..", "job"),
        ("ok", "ok"),
    ],
)
def test_names_become_safe_path_components(name: str, slug: str) -> None:
    assert job_slug(name) == slug
