"""A real elastic job: a node joins and leaves while it runs, and every world gets its plan."""

import signal
import socket
import subprocess

import pytest

from tests.launchjob import JOBS, LAUNCH, place, wait_for
from trainmesh.store.base import job_prefix
from trainmesh.store.etcd import connect
from trainmesh.types import Hint, JobStatus
from trainmesh.wire import decode

pytestmark = [pytest.mark.torch, pytest.mark.etcd]

JOB = "elastic"
NO_SHARED_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""torch 2.13: with the shared store a node that joins waits for an address that the first node,
which has kept its own from the round before, doesn't publish again."""
RENDEZVOUS = "last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=3"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        return int(opened.getsockname()[1])


@pytest.mark.timeout(280)
def test_a_node_that_joins_and_leaves_is_followed_without_a_blind_step(etcd_url: str) -> None:
    store = connect(etcd_url)
    port = free_port()

    def in_force(world_size: int, after: int) -> Hint | None:
        """The hint that all ranks of a world of that size run, newer than epoch ``after``."""
        entry = store.get(f"{job_prefix(JOB)}status")
        status = decode(entry.value, JobStatus, what="status") if entry is not None else None
        if status is None or status.world_size != world_size or status.epoch <= after:
            return None
        assert {rank.rank for rank in status.ranks} == set(range(world_size))
        return status.hint if status.hint and status.hint.epoch == status.epoch else None

    with place() as here:

        def launch() -> subprocess.Popen[str]:
            return here.start(
                *LAUNCH, "--nnodes", "1:2", "--nproc-per-node", "2", "--max-restarts", "20",
                "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}",
                "--rdzv-id", JOB, "--rdzv-conf", RENDEZVOUS, "--job", JOB, "--etcd", etcd_url,
                "--plan", "native", "--fusion", "100KB", "--cadence", "4",
                str(JOBS / "endless.py"), **NO_SHARED_STORE,
            )  # fmt: skip

        first = launch()
        alone = wait_for(lambda: in_force(2, 0), timeout_s=90)
        second = launch()
        both = wait_for(lambda: in_force(4, alone.epoch), timeout_s=90)
        second.send_signal(signal.SIGTERM)
        again = wait_for(lambda: in_force(2, both.epoch), timeout_s=90)
        assert len({alone.world, both.world, again.world}) == 3
        assert [hint.plan.world_size for hint in (alone, both, again)] == [2, 4, 2]
        assert all(hint.fusion_bytes == 100_000 for hint in (alone, both, again))
        for process in (second, first):
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        assert here.processes() == {}
    store.close()
