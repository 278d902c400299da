"""Real agent processes without a launcher: one a node, on one etcd."""

import subprocess
import sys

from tests.launchjob import Place, wait_for
from trainmesh.store.base import job_prefix
from trainmesh.store.etcd import EtcdStore
from trainmesh.topology.document import dump
from trainmesh.topology.graph import host_graph
from trainmesh.types import JobStatus, RankStatus
from trainmesh.wire import encode


def start_agent(
    here: Place, job: str, node: str, etcd: str, *before: str, **env: str
) -> subprocess.Popen[str]:
    """An agent for ``node``; ``before`` stands in front of its command (``ip netns exec ...``)."""
    run = here.path / f"{job}-{node}"
    run.mkdir(exist_ok=True)
    return here.start(
        *before,
        sys.executable,
        "-m",
        "trainmesh.agent.process",
        TRAINMESH_RUN_DIR=str(run),
        TRAINMESH_JOB=job,
        TRAINMESH_NODE=node,
        TRAINMESH_ETCD=etcd,
        **env,
    )


def wait_for_agents(store: EtcdStore, job: str, nodes: list[str]) -> None:
    keys = [f"{job_prefix(job)}agents/{node}" for node in nodes]
    wait_for(lambda: all(store.get(key) is not None for key in keys))


def publish(store: EtcdStore, job: str, ranks: dict[str, list[int]], backend: str = "gloo") -> None:
    """What a coordinator would have written: the status and the graph of ``job``."""
    status = JobStatus(
        job=job,
        updated_unix_s=1.0,
        world_size=sum(map(len, ranks.values())),
        backend=backend,
        ranks=tuple(
            RankStatus(rank=rank, node=node, pid=1, step=1, epoch=0, skew_s=0.0, exposed_share=0.0)
            for node, own in ranks.items()
            for rank in own
        ),
    )
    store.put(f"{job_prefix(job)}status", encode(status))
    store.put(f"{job_prefix(job)}graph", encode(dump(host_graph(ranks))))


def keys(store: EtcdStore, job: str, under: str = "") -> list[str]:
    """The job's keys under ``under``, without its prefix."""
    prefix = job_prefix(job)
    return [entry.key.removeprefix(prefix) for entry in store.list(f"{prefix}{under}")[0]]
