"""``trainmesh lab run``: builds the lab, runs the job in it, and shows what goes on."""

from __future__ import annotations

import sys
import threading

from trainmesh.console import say
from trainmesh.errors import ConfigError
from trainmesh.launcher.lab.arguments import LabArguments
from trainmesh.launcher.lab.job import LabJob, Launcher, job_command
from trainmesh.launcher.lab.lab import Lab
from trainmesh.launcher.lab.layout import Host, LabLayout, load_layout
from trainmesh.launcher.lab.progress import JobProgress
from trainmesh.launcher.lab.timeline import Timeline, words
from trainmesh.launcher.run import signals
from trainmesh.units import duration

__all__ = ["main"]


def main(arguments: LabArguments, *, debug: bool) -> int:
    """Run a job in a lab, with ``debug`` in its hosts; returns the job's exit code."""
    layout = load_layout(arguments.topology)
    _check_ranks(layout, arguments)
    if arguments.dry_run:
        print(_description(layout))
        return 0
    with signals.raising(), Lab(arguments.topology) as lab:
        return _run(lab, arguments, debug=debug)


def _run(lab: Lab, arguments: LabArguments, *, debug: bool) -> int:
    flags = [*arguments.flags, *(["--debug"] if debug else [])]
    if arguments.declare:
        flags += ["--topology", str(lab.topology)]
    commands = []
    for host in lab.hosts:
        report = host.index == 0 and arguments.report is not None
        more = ["--report", str(arguments.report)] if report else []
        commands.append(
            job_command(lab, host, Launcher.TRAINMESH, [*flags, *more], arguments.program)
        )
    progress = JobProgress(lab, arguments.progress)
    job = LabJob(lab, commands, {}, _HostLines(lab))
    timeline = Timeline(lab, say)

    def tick() -> None:
        timeline.tick()
        progress.tick()

    try:
        return job.wait(tick=tick)
    finally:
        signals.hold()
        job.stop()
        progress.close()


class _HostLines:
    """Prints each host's lines with its name before them; called by several threads."""

    def __init__(self, lab: Lab) -> None:
        self._width = max(len(host.name) for host in lab.hosts)
        self._lock = threading.Lock()

    def __call__(self, host: Host, line: bytes) -> None:
        end = b"" if line.endswith(b"\n") else b"\n"
        with self._lock:
            sys.stdout.buffer.write(f"{host.name:{self._width}} | ".encode() + line + end)
            sys.stdout.buffer.flush()


def _check_ranks(layout: LabLayout, arguments: LabArguments) -> None:
    wanted = arguments.num_ranks_a_host
    for host in layout.hosts:
        if wanted is not None and len(host.ranks) != wanted:
            raise ConfigError(
                f"--nproc-per-node {wanted}: host {host.name!r} of {arguments.topology} has "
                f"{len(host.ranks)}; leave the flag out, the file says it"
            )


def _description(layout: LabLayout) -> str:
    lines = []
    for host in layout.hosts:
        lines.append(f"host {host.name}: ranks {', '.join(map(str, host.ranks))}")
    for wire in layout.wires:
        rates = [f"{c.bandwidth_bytes_per_s * 8e-6:g}" for c in (wire.forward, wire.backward)]
        both = rates[0] if rates[0] == rates[1] else " and ".join(rates)
        latency = duration(max(wire.forward.alpha_s, wire.backward.alpha_s))
        lines.append(f"link {wire.a}-{wire.b}: {both} Mbit/s, {latency}")
    for change in layout.timeline:
        when = f"step {change.at_step}" if change.at_step is not None else f"{change.at_s:g} s"
        lines.append(f"at {when}: {words(change)}")
    return "\n".join(lines)
