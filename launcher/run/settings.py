"""The name of one launch, and the settings for its workers and its control plane."""

from __future__ import annotations

import functools
import os
import secrets
import socket
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainmesh.job_settings import AUTO, ENV_SETTINGS, NO_CODEC, JobSettings
from trainmesh.launcher.run.service import NICENESS, PythonProcess, Service
from trainmesh.rundir import ENV_RUN_DIR, RunDir, job_slug
from trainmesh.store.claim import ENV_CLAIM, Claim, Meeting, new_claim
from trainmesh.store.embedded import EmbeddedEtcd
from trainmesh.wire import encode

__all__ = [
    "LaunchSettings",
    "job_name",
    "node_name",
    "python_path",
    "services",
    "worker_environment",
]

SITE = Path(__file__).resolve().parent.parent / "site"
ENV_LAUNCHER = "TRAINMESH_LAUNCHER"
"""The launcher's process number: whose children are workers."""


@dataclass(frozen=True)
class LaunchSettings:
    """The validated settings of one launch. ``etcd`` is None for an embedded one."""

    job: str
    node: str
    etcd: str | None
    insecure_etcd: bool
    topology: Path | None
    plan: str
    margin: float
    cadence: int
    fusion: str = AUTO
    """``auto``, or bytes to hold back; 0 is off."""
    compression: str = NO_CODEC
    meeting: Meeting | None = None
    """Where the launchers of several nodes meet."""

    @property
    def of_job(self) -> JobSettings:
        """What the coordinator is told of them."""
        return JobSettings(
            only=None if self.plan == AUTO else self.plan,
            margin=self.margin,
            fusion_bytes=None if self.fusion == AUTO else int(self.fusion),
            compression=self.compression,
        )

    @functools.cached_property
    def claim(self) -> Claim:
        """This launch's claim on the job's name."""
        return new_claim(self.job, self.meeting)


def job_name(args: Namespace, num_nodes: int) -> str:
    """The job's name: the same on all its nodes, and on one machine different for each launch.

    ``--job``, else torchrun's ``--rdzv-id``, else, for several nodes, the address they meet at,
    else the script's name with a random end.
    """
    if args.job:
        return str(args.job)
    if args.rdzv_id != "none" and not args.standalone:
        return job_slug(args.rdzv_id)
    if num_nodes > 1:
        return job_slug(args.rdzv_endpoint or f"{args.master_addr}:{args.master_port or 29500}")
    return f"{job_slug(Path(args.training_script).stem)[:24]}-{secrets.token_hex(3)}"


def node_name(args: Namespace, num_nodes: int) -> str:
    """This node's name: the host's, and for several nodes with something that also tells two
    launchers on one host apart (network namespaces, tests)."""
    host = job_slug(socket.gethostname())
    if num_nodes == 1:
        return host
    # --node-rank only counts with the static rendezvous; without it all nodes say 0.
    return f"{host}-{args.node_rank if args.rdzv_backend == 'static' else os.getpid()}"


def worker_environment(settings: LaunchSettings, run: RunDir | None) -> dict[str, str]:
    """The environment variables of workers beside torchrun's. Without a run directory, workers have
    the hook like those of other nodes, but report to nobody."""
    return {
        ENV_RUN_DIR: str(run.path) if run is not None else "",
        ENV_LAUNCHER: str(os.getpid()),
        "TRAINMESH_JOB": settings.job,
        "TRAINMESH_NODE": settings.node,
        "TRAINMESH_CADENCE": str(settings.cadence),
        "TRAINMESH_COMPRESSION": settings.compression,
    }


def python_path(environ: Mapping[str, str] = os.environ) -> str:
    """PYTHONPATH of the workers: ``site/``, whose ``sitecustomize`` takes itself off the path,
    before what the user has there (an empty entry is the working directory)."""
    users = environ.get("PYTHONPATH", "")
    return f"{SITE}{os.pathsep}{users}" if users else str(SITE)


def services(settings: LaunchSettings, run: RunDir) -> tuple[str, list[Service]]:
    """The store's URL, and the processes of this node in the order in which they start.

    Raises:
        ConfigError: an etcd is to be started here and there is none.
    """
    result: list[Service] = []
    url = settings.etcd
    if url is None:
        log = run.path / "etcd.log"
        etcd = EmbeddedEtcd(run.etcd_data, log, niceness=NICENESS)
        url = etcd.url
        result.append(Service("etcd", log, etcd))
    environment = {
        **os.environ,
        **worker_environment(settings, run),
        "TRAINMESH_ETCD": url,
        ENV_CLAIM: encode(settings.claim).decode(),
        "TRAINMESH_INSECURE_ETCD": "1" if settings.insecure_etcd else "0",
        "TRAINMESH_TOPOLOGY": str(settings.topology or ""),
        ENV_SETTINGS: encode(settings.of_job).decode(),
    }
    for name, module in (
        ("coordinator", "trainmesh.coordinator.process"),
        ("agent", "trainmesh.agent.process"),
    ):
        log = run.path / f"{name}.log"
        result.append(Service(name, log, PythonProcess(module, environment, log)))
    return url, result
