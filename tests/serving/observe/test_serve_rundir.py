"""Run directories of routers: found while their owner lives, swept when it is gone."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from trainmesh import rundir as jobs
from trainmesh.errors import ConfigError
from trainmesh.launcher.lab.state import LabDirectory
from trainmesh.rundir import write_atomically
from trainmesh.serving.control.rundir import (
    RouterInfo,
    ServeRun,
    WorkerWords,
)
from trainmesh.wire import encode


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def test_a_router_is_found_until_it_is_removed(root: Path) -> None:
    run = ServeRun.create("front")
    assert run.path.stat().st_mode & 0o077 == 0
    info = run.info()
    assert info is not None
    run.publish(msgspec.structs.replace(info, admin="http://127.0.0.1:1"))
    assert [(each.path, found.name, found.admin) for each, found in ServeRun.live()] == [
        (run.path, "front", "http://127.0.0.1:1")
    ]
    run.remove()
    assert ServeRun.live() == []
    assert list(root.iterdir()) == [], "the root goes with the last run"


def test_routers_and_jobs_do_not_see_each_other() -> None:
    router = ServeRun.create("front")
    job = jobs.RunDir.create(jobs.RunInfo(job="serve", pid=os.getpid(), etcd="", created_unix_s=0))
    assert [run.path for run, _ in jobs.RunDir.live()] == [job.path]
    assert [run.path for run, _ in ServeRun.live()] == [router.path]
    assert jobs.RunDir.sweep() == ServeRun.sweep() == []


def test_the_dead_are_swept() -> None:
    """Whatever process has the id that router.json names."""
    for pid in (os.getpid(), 2**22 + 1):
        run = ServeRun.create("gone")
        run.publish(RouterInfo(name="gone", pid=pid))
        run.release()
    alive = ServeRun.create("alive")
    alive.publish(RouterInfo(name="alive", pid=2**22 + 1))
    assert [run.path for run, _ in ServeRun.live()] == [alive.path]
    assert len(ServeRun.sweep()) == 2
    assert ServeRun.sweep() == []


@pytest.mark.parametrize("create", [lambda: ServeRun.create("front"), LabDirectory.create])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, create: Callable[[], object]
) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("trainmesh.rundir.write_atomically", refuse)
    with pytest.raises(ConfigError, match=r"can't write .*: No space left on device; set XDG"):
        create()
    assert list(root.iterdir()) == []


def test_damaged_files_are_as_if_they_were_not_there() -> None:
    run = ServeRun.create("front")
    run.words(0).write_text("{")
    assert run.worker_words(0) == WorkerWords()
    run.owner.write_text("[]")
    assert ServeRun.live() == []
    assert ServeRun.sweep() == [], "not ours to remove"


def test_workers_words_come_back() -> None:
    run = ServeRun.create("front")
    words = WorkerWords(excluded={"m": {"h:1": "ejected: 3 failures in a row"}})
    write_atomically(run.words(3), encode(words))
    assert run.worker_words(3) == words
