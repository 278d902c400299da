"""Two launchers that share one etcd: one job, one coordinator in charge, one plan for all."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launchjob import JOBS, LAUNCH, Place, place
from trainmesh.store.embedded import EmbeddedEtcd
from trainmesh.store.etcd import connect

pytestmark = [pytest.mark.torch, pytest.mark.etcd]

SCRIPT = str(JOBS / "paced.py")


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[str]:
    server = EmbeddedEtcd(tmp_path / "data", tmp_path / "log")
    server.start()
    try:
        server.wait_ready(10)
        yield server.url
    finally:
        server.stop()


@pytest.fixture
def here() -> Iterator[Place]:
    with place() as found:
        yield found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        return int(opened.getsockname()[1])


TWO_HOSTS = """
version: 1
nodes: {g0: {kind: rank}, g1: {kind: rank}, g2: {kind: rank}, g3: {kind: rank},
  a: {kind: switch}, b: {kind: switch}}
links:
- {src: g0, dst: a, bandwidth_GBps: 1}
- {src: g2, dst: a, bandwidth_GBps: 1}
- {src: g1, dst: b, bandwidth_GBps: 1}
- {src: g3, dst: b, bandwidth_GBps: 1}
- {src: a, dst: b, bandwidth_GBps: 0.01, class: wan}
"""


def test_two_nodes_switch_together_and_leave_nothing_in_etcd(here: Place, etcd: str) -> None:
    (here.path / "graph.yaml").write_text(TWO_HOSTS)
    port = free_port()
    processes = [
        here.start(
            *LAUNCH,
            *("--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", "2"),
            *("--rdzv-endpoint", f"127.0.0.1:{port}"),
            *("--etcd", etcd, "--plan", "ring", "--cadence", "4"),
            *("--topology", "graph.yaml", "--report", f"report{node}"),
            SCRIPT,
            SECONDS="10",
        )
        for node in range(2)
    ]
    for process in processes:
        _, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
    run = json.loads((here.path / "report0" / "report.json").read_text())
    text = json.dumps(run)
    assert "all 4 ranks switched to ring" in text
    store = connect(etcd)
    try:
        left, _ = store.list("/trainmesh/")
    finally:
        store.close()
    assert [entry.key for entry in left] == []
    assert here.processes() == {}
    assert here.files() == []
