"""Names of jobs and nodes, and what processes are told."""

import os
import re
import socket
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import trainmesh
from trainmesh.errors import WireError
from trainmesh.job_settings import JobSettings
from trainmesh.launcher.run.service import NICENESS, PythonProcess, python_environment
from trainmesh.launcher.run.settings import (
    LaunchSettings,
    job_name,
    node_name,
    services,
    worker_environment,
)
from trainmesh.process import ControlEnvironment
from trainmesh.rundir import RunDir
from trainmesh.store.embedded import EmbeddedEtcd

BASE = {
    "job": None,
    "rdzv_id": "none",
    "standalone": False,
    "rdzv_endpoint": "",
    "rdzv_backend": "static",
    "master_addr": "10.0.0.1",
    "master_port": None,
    "node_rank": 3,
    "training_script": "dir/train net.py",
}
SETTINGS = LaunchSettings(
    job="j",
    node="n",
    etcd="http://127.0.0.1:2379",
    insecure_etcd=True,
    topology=None,
    plan="ring",
    margin=0.25,
    cadence=8,
)


@pytest.mark.parametrize(
    ("flags", "num_nodes", "expected"),
    [
        ({"job": "mine", "rdzv_id": "other"}, 1, "mine"),
        ({"rdzv_id": "exp 7"}, 1, "exp-7"),
        ({"rdzv_id": "exp7"}, 4, "exp7"),
        ({"rdzv_endpoint": "host:29400"}, 2, "host-29400"),
        ({}, 2, "10.0.0.1-29500"),
        ({"master_port": 1234}, 2, "10.0.0.1-1234"),
    ],
)
def test_job_names(flags: dict[str, object], num_nodes: int, expected: str) -> None:
    assert job_name(Namespace(**{**BASE, **flags}), num_nodes) == expected


@pytest.mark.parametrize("flags", [{}, {"standalone": True, "rdzv_id": "ignored"}])
def test_launches_on_one_machine_have_different_names(flags: dict[str, object]) -> None:
    names = {job_name(Namespace(**{**BASE, **flags}), 1) for _ in range(20)}
    assert len(names) == 20
    assert all(re.fullmatch(r"train-net-[0-9a-f]{6}", name) for name in names)


def test_node_names_tell_launchers_on_one_host_apart() -> None:
    host = node_name(Namespace(**BASE), 1)
    assert host == socket.gethostname()
    assert node_name(Namespace(**BASE), 2) == f"{host}-3"
    dynamic = node_name(Namespace(**{**BASE, "rdzv_backend": "c10d"}), 2)
    assert re.fullmatch(rf"{re.escape(host)}-\d+", dynamic)


def test_workers_are_told_where_the_run_directory_is(tmp_path: Path) -> None:
    assert worker_environment(SETTINGS, RunDir(tmp_path)) == {
        "TRAINMESH_RUN_DIR": str(tmp_path),
        "TRAINMESH_LAUNCHER": str(os.getpid()),
        "TRAINMESH_JOB": "j",
        "TRAINMESH_NODE": "n",
        "TRAINMESH_CADENCE": "8",
        "TRAINMESH_COMPRESSION": "none",
    }


@pytest.mark.starts
@pytest.mark.parametrize("etcd", [None, "http://127.0.0.1:2379"])
def test_services_in_their_order(tmp_path: Path, etcd: str | None) -> None:
    settings = LaunchSettings(
        **{name: getattr(SETTINGS, name) for name in SETTINGS.__dataclass_fields__} | {"etcd": etcd}
    )
    url, found = services(settings, RunDir(tmp_path))
    names = [service.name for service in found]
    assert names == (["coordinator", "agent"] if etcd else ["etcd", "coordinator", "agent"])
    assert url == etcd or url.startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"plan": "auto", "fusion": "auto"}, JobSettings(margin=SETTINGS.margin)),
        ({"plan": "ring", "fusion": "0", "margin": 1.0, "compression": "int8"},
         JobSettings(only="ring", fusion_bytes=0, margin=1.0, compression="int8")),
    ],
)  # fmt: skip
def test_what_was_asked_for_reaches_the_coordinator(
    tmp_path: Path, flags: dict[str, Any], expected: JobSettings
) -> None:
    settings = replace(SETTINGS, etcd="http://127.0.0.1:2379", **flags)
    _, [coordinator, _] = services(settings, RunDir(tmp_path))
    assert isinstance(coordinator.process, PythonProcess)
    assert ControlEnvironment.read(coordinator.process._environment).settings == expected


@pytest.mark.parametrize(
    "told", ['{"margin":1.5}', '{"margin":-0.1}', '{"fusion_bytes":-1}', '{"only":3}', "native"]
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, told: str) -> None:
    environment = {
        "TRAINMESH_RUN_DIR": str(tmp_path),
        "TRAINMESH_JOB": "j",
        "TRAINMESH_NODE": "n",
        "TRAINMESH_ETCD": "http://127.0.0.1:2379",
        "TRAINMESH_SETTINGS": told,
    }
    with pytest.raises(WireError, match="TRAINMESH_SETTINGS"):
        ControlEnvironment.read(environment)


@pytest.mark.etcd
def test_each_thread_of_the_embedded_etcd_comes_after_training(tmp_path: Path) -> None:
    _, [etcd, *_] = services(replace(SETTINGS, etcd=None), RunDir(tmp_path))
    assert isinstance(etcd.process, EmbeddedEtcd)
    etcd.process.start()
    try:
        etcd.process.wait_ready(30)
        threads = list(Path(f"/proc/{etcd.process.pid}/task").iterdir())
        found = {os.getpriority(os.PRIO_PROCESS, int(thread.name)) for thread in threads}
    finally:
        etcd.process.stop()
    assert len(threads) > 1
    assert found == {min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)}


def test_a_python_process_finds_this_trainmesh(monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(Path(trainmesh.__file__).parent.parent)
    monkeypatch.setattr(sys, "path", [root, "/elsewhere"])
    assert python_environment({})["PYTHONPATH"] == root
    assert python_environment({"PYTHONPATH": "/a"})["PYTHONPATH"] == f"{root}:/a"
    monkeypatch.setattr(sys, "path", ["/bin", "/elsewhere", root])
    assert python_environment({"A": "b"}) == {"A": "b"}
