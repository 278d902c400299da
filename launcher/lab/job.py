"""A training job on a lab: one launcher on each host, whose lines are passed on as they come."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import IO

from trainmesh.launcher.lab.lab import Lab
from trainmesh.launcher.lab.layout import Host
from trainmesh.launcher.lab.network.network import CONTROL_ADDRESS
from trainmesh.launcher.lab.timeline import Timeline

__all__ = ["LabJob", "JobResult", "Launcher", "Line", "job_command", "run_job"]

MASTER_PORT = 29500
"""torchrun's own default; hosts of a lab have networks of their own, so it is free."""
STOP_S = 8.0
"""From SIGTERM to SIGKILL: torchrun gives its workers some seconds of that."""
GRACE_S = 5.0
"""For the others to end by themselves, once a launcher has failed."""
POLL_S = 0.05
"""Between two looks at the launchers and the timeline."""
MAX_LINE_BYTES = 64 * 1024
"""Of a host's output; a longer one is cut into several."""
NOISE = f"trainmesh: warning: etcd at {CONTROL_ADDRESS} is reached in plain text".encode()
"""True, but not of a network that anybody else is on."""

Line = Callable[[Host, bytes], None]


class Launcher(StrEnum):
    """What starts the ranks in each host."""

    TRAINMESH = "trainmesh"
    TORCHRUN = "torchrun"


@dataclass(frozen=True)
class JobResult:
    """How a job ended: 0, else the code of the first launcher that failed, and what each host's
    launcher printed (stdout and stderr in one)."""

    returncode: int
    output: dict[str, str] = field(default_factory=dict)


def job_command(
    lab: Lab, host: Host, launcher: Launcher, flags: Sequence[str], program: Sequence[str]
) -> list[str]:
    """The command that starts the ranks of ``host``."""
    meeting = [
        *("--nnodes", str(len(lab.hosts)), "--node-rank", str(host.index)),
        *("--nproc-per-node", str(len(host.ranks))),
        *("--master-addr", lab.control_address(lab.hosts[0].name)),
        *("--master-port", str(MASTER_PORT)),
    ]
    # Not in the temporary directory, where a killed torchrun would leave them.
    logs = ["--log-dir", str(lab.directory / "logs")]
    if launcher is Launcher.TORCHRUN:
        return [sys.executable, "-m", "torch.distributed.run", *logs, *flags, *meeting, *program]
    ours = ["--etcd", lab.store_url(), "--progress", "off", *meeting]
    return [sys.executable, "-P", "-m", "trainmesh", "launch", *logs, *flags, *ours, *program]


class LabJob:
    """The launchers of one job, started; their lines go to ``line``, from a thread per host."""

    def __init__(
        self, lab: Lab, commands: Sequence[Sequence[str]], env: Mapping[str, str], line: Line
    ) -> None:
        self._line = line
        self._processes: list[subprocess.Popen[bytes]] = []
        self._threads: list[threading.Thread] = []
        self._failure: tuple[int, float] | None = None
        """The first launcher's exit code that was not 0, and when (monotonic seconds)."""
        try:
            for host, command in zip(lab.hosts, commands, strict=True):
                self._start(lab, host, command, env)
        except BaseException:
            self.stop()
            raise

    def _start(self, lab: Lab, host: Host, command: Sequence[str], env: Mapping[str, str]) -> None:
        process = lab.start(
            host.name, command, env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._processes.append(process)
        if process.stdout is not None:
            thread = threading.Thread(
                target=self._read, args=(host, process.stdout), name=f"lines-{host.name}"
            )
            thread.daemon = True
            thread.start()
            self._threads.append(thread)

    def _read(self, host: Host, stream: IO[bytes]) -> None:
        for line in iter(lambda: stream.readline(MAX_LINE_BYTES), b""):
            if not line.startswith(NOISE):
                self._line(host, line)

    def poll(self) -> int | None:
        """The job's exit code once all launchers have ended: 0, else that of the first one that
        was seen to fail; None before."""
        codes = [process.poll() for process in self._processes]
        if self._failure is None:
            code = next((code for code in codes if code), None)
            if code is not None:
                self._failure = (code, time.monotonic())
        if None in codes:
            return None
        return 0 if self._failure is None else self._failure[0]

    def wait(self, timeout_s: float | None = None, tick: Callable[[], None] = lambda: None) -> int:
        """Wait for the job's end; ``tick`` is called about every ``POLL_S`` meanwhile.

        Once a launcher has failed the others have ``GRACE_S`` to end by themselves: torchrun's
        would wait for its return for minutes.

        Raises:
            subprocess.TimeoutExpired: it has not ended in ``timeout_s``.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while (code := self.poll()) is None:
            if deadline_s is not None and time.monotonic() >= deadline_s:
                raise subprocess.TimeoutExpired("the lab's job", timeout_s or 0.0)
            if self._failure is not None and time.monotonic() - self._failure[1] > GRACE_S:
                self.stop()
                continue
            tick()
            time.sleep(POLL_S)
        self._join()
        return code

    def interrupt(self, number: int) -> None:
        """Send a signal to all launchers."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)

    def stop(self) -> None:
        """End what still runs: as Ctrl-C does, then forcibly."""
        self.interrupt(signal.SIGINT)
        deadline_s = time.monotonic() + STOP_S
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._join()

    def _join(self) -> None:
        for thread in self._threads:
            thread.join(1.0)
        for process in self._processes:
            if process.stdout is not None and not any(t.is_alive() for t in self._threads):
                process.stdout.close()


def run_job(
    lab: Lab,
    program: Sequence[str],
    *,
    flags: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    launcher: Launcher | str = Launcher.TRAINMESH,
    declare: bool = True,
    timeout_s: float | None = None,
) -> JobResult:
    """Run a script on all ranks of a lab, with the timeline of its file, and wait for its end.

    Under torchrun, changes at a step are left out: nobody counts steps there (see ``Timeline``).

    Args:
        lab: Where.
        program: The script and its arguments.
        flags: Of ``trainmesh launch`` or torchrun.
        env: Variables in addition to those of ``Lab.environment``.
        launcher: ``trainmesh`` or ``torchrun`` (for comparison).
        declare: Whether trainmesh is told the topology, or has to find out.
        timeout_s: When it is ended.

    Raises:
        subprocess.TimeoutExpired: it has not ended in ``timeout_s``.
    """
    lines: dict[str, list[bytes]] = {host.name: [] for host in lab.hosts}
    launcher = Launcher(launcher)
    declared = ["--topology", str(lab.topology)]
    given = [*flags, *(declared if declare and launcher is Launcher.TRAINMESH else [])]
    commands = [job_command(lab, host, launcher, given, program) for host in lab.hosts]
    job = LabJob(lab, commands, env or {}, lambda host, line: lines[host.name].append(line))
    try:
        code = job.wait(timeout_s, Timeline(lab).tick)
    finally:
        job.stop()
    text = {name: b"".join(found).decode(errors="replace") for name, found in lines.items()}
    return JobResult(code, text)
