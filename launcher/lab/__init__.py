"""A cluster emulated on one machine: network namespaces for hosts, bridges for switches."""

from trainmesh.launcher.lab.job import JobResult, LabJob, Launcher, run_job
from trainmesh.launcher.lab.lab import Lab
from trainmesh.launcher.lab.layout import Host
from trainmesh.launcher.lab.network.shape import Condition
from trainmesh.launcher.lab.stream import stream_gbps
from trainmesh.launcher.lab.timeline import Timeline

__all__ = [
    "Condition",
    "Host",
    "LabJob",
    "JobResult",
    "Lab",
    "Launcher",
    "Timeline",
    "run_job",
    "stream_gbps",
]
