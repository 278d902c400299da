"""A rank killed or stopped in the middle of each executor: the others raise within the group's
timeout, naming a peer, and end."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hooks.test_executors import plans
from trainmesh.types import Hint
from trainmesh.wire import encode

pytestmark = [pytest.mark.torch, pytest.mark.fault]

ROOT = Path(__file__).parent.parent.parent
JOB = Path(__file__).parent.parent / "jobs/lost.py"
WORLD_SIZE = 4
TIMEOUT_S = 4
NAMES = ["native", "one ring", "two rings", "equal islands", "sharded", "tree", "forest"]
QUICK = {
    ("native", "KILL"),
    ("one ring", "STOP"),
    ("two rings", "KILL"),
    ("equal islands", "KILL"),
    ("sharded", "STOP"),
    ("tree", "KILL"),
    ("forest", "KILL"),
}
CASES = [
    pytest.param(name, how, marks=[] if (name, how) in QUICK else pytest.mark.soak)
    for name in NAMES
    for how in ("KILL", "STOP")
]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(rank: int, port: int, out: Path, **env: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(JOB)],
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("TRAINMESH")},
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "RANK": str(rank),
            "WORLD_SIZE": str(WORLD_SIZE),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OUT": str(out),
            **env,
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.parametrize(("name", "how"), CASES)
def test_the_others_raise_and_end(name: str, how: str, tmp_path: Path) -> None:
    hint = Hint(job="test", epoch=1, effective_step=0, plan=plans(WORLD_SIZE)[name], reason="test")
    port = free_port()
    ranks = [
        start(rank, port, tmp_path, HINT=encode(hint).decode(), SIGNAL=how)
        for rank in range(WORLD_SIZE)
    ]
    try:
        for rank, process in enumerate(ranks):
            if rank != 2:
                process.wait(timeout=60)
    finally:
        for process in ranks:
            process.send_signal(signal.SIGKILL)
            process.wait()
    for rank in (0, 1, 3):
        seen = json.loads((tmp_path / f"{rank}.json").read_text())
        assert seen["waited_s"] < 3 * TIMEOUT_S, (rank, seen)
        assert seen["error"], rank
        if name not in ("native", "one ring"):  # those are the backend's own words
            assert "gradients" in seen["error"], (rank, seen)
            assert "rank " in seen["error"], (rank, seen)
