"""Run directories: private, atomic, swept when their owner is gone."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from trainmesh.errors import ConfigError
from trainmesh.rundir import (
    RunDir,
    RunInfo,
    job_slug,
    live_runs,
    process_start_ticks,
    runs_root,
    sweep,
)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def info(pid: int, ticks: int | None) -> RunInfo:
    return RunInfo(
        job="a job", pid=pid, start_ticks=ticks or 0, etcd="", created_unix_s=time.time()
    )


def test_a_run_directory_is_private_and_names_its_owner() -> None:
    run = RunDir.create(info(os.getpid(), process_start_ticks(os.getpid())))
    assert run.path.stat().st_mode & 0o077 == 0
    assert [(r.path, i.job) for r, i in live_runs()] == [(run.path, "a job")]
    assert len(str(run.socket)) - len(str(runs_root())) < 60


def test_sweep_removes_only_what_dead_owners_left() -> None:
    alive = RunDir.create(info(os.getpid(), process_start_ticks(os.getpid())))
    process = subprocess.Popen(["sleep", "60"])
    dead = RunDir.create(info(process.pid, process_start_ticks(process.pid)))
    reused_pid = RunDir.create(info(os.getpid(), 1))
    process.kill()
    process.wait()
    assert sorted(sweep()) == sorted([dead.path, reused_pid.path])
    assert alive.path.exists()
    assert sweep() == []


def test_a_damaged_owner_file_is_left_alone() -> None:
    run = RunDir.create(info(os.getpid(), 1))
    run.owner.write_bytes(b"{")
    assert run.info() is None
    assert sweep() == []
    assert live_runs() == []


def test_a_root_that_cannot_be_made_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trainmesh").write_text("a file")
    with pytest.raises(ConfigError, match="XDG_RUNTIME_DIR"):
        RunDir.create(info(1, 1))


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
