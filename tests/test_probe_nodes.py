"""A probe of a job of two launchers while it trains: the job goes on and nothing is left."""

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launchjob import JOBS, LAUNCH, Place, place, wait_for
from trainmesh.store.embedded import EmbeddedEtcd
from trainmesh.store.etcd import connect

pytestmark = [pytest.mark.torch, pytest.mark.etcd]

TRAINMESH = [sys.executable, "-m", "trainmesh"]


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


def test_a_probe_of_a_running_job(here: Place, etcd: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        port = opened.getsockname()[1]
    processes = [
        here.start(
            *LAUNCH,
            *("--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", "1"),
            *("--rdzv-endpoint", f"127.0.0.1:{port}", "--etcd", etcd, "--job", "probed"),
            str(JOBS / "paced.py"),
            SECONDS="12",
        )
        for node in range(2)
    ]
    wait_for(lambda: '"class"' in here.run(*TRAINMESH, "topology", "show", "--json").stdout)
    done = here.run(*TRAINMESH, "topology", "probe", "--json", "--output", "measured.json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["job"], report["backend"], len(report["pairs"])) == ("probed", "gloo", 1)
    assert report["pairs"][0]["graph_forward"] is not None
    trace = json.loads(here.run(*TRAINMESH, "trace", "0", "1", "--json").stdout)
    assert trace["measured"] == report["pairs"][0]["measure"]
    document = json.loads((here.path / "measured.json").read_text())
    assert {link["source"] for link in document["links"]} >= {"measured"}
    node = report["nodes"][0]["node"]
    ping = here.run(*TRAINMESH, "ping", node, "--count", "2")
    assert "2 sent, 2 received, 0 % lost" in ping.stdout, ping.stderr
    for process in processes:
        _, err = process.communicate(timeout=90)
        assert process.returncode == 0, err
    store = connect(etcd)
    try:
        assert [entry.key for entry in store.list("/trainmesh/")[0]] == []
    finally:
        store.close()
    assert here.processes() == {}
