"""An emulated cluster as an object: hosts to run commands in, links to change."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from trainmesh.errors import ConfigError
from trainmesh.launcher.lab.layout import Host, load_layout
from trainmesh.launcher.lab.network.namespaces import CONTROL, Namespaces, Stream
from trainmesh.launcher.lab.network.network import (
    CONTROL_ADDRESS,
    DATA_DEVICE,
    Network,
    control_address,
    data_address,
    hosts_file,
)
from trainmesh.launcher.lab.network.ready import has_input
from trainmesh.launcher.lab.network.shape import Condition
from trainmesh.launcher.lab.state import LabDirectory
from trainmesh.launcher.run.service import python_environment
from trainmesh.rundir import job_slug
from trainmesh.topology.document import LinkChange

__all__ = ["Lab"]

STORE_START_S = 25.0
"""A little more than the store's process gives etcd, so that its error is heard."""


class Lab:
    """The hosts and links of a topology file, as network namespaces of this machine.

    Use it in a ``with`` statement: on exit all its processes, devices and files are removed. The
    same happens if this process is killed, except for a directory that the next lab removes.

    Args:
        topology: A topology file (docs/topology.md, docs/lab.md).
        with_latency: Links, as pairs of nodes, whose latency or loss will be set although
            neither links nor timeline of the file give them one.

    Raises:
        GraphError: the file is not usable, or not by a lab.
        ConfigError: the kernel doesn't allow a lab, or a program is missing.
    """

    def __init__(
        self, topology: Path | str, *, with_latency: Iterable[tuple[str, str]] = ()
    ) -> None:
        self.topology = Path(topology).absolute()
        self.layout = load_layout(self.topology)
        LabDirectory.sweep()
        self._owned = LabDirectory.create()
        self.directory = self._owned.path
        self._namespaces: Namespaces | None = None
        self._network: Network | None = None
        self._store: subprocess.Popen[bytes] | None = None
        self._url = ""
        try:
            names = [job_slug(host.name) for host in self.layout.hosts]
            (self.directory / "hosts").write_text(hosts_file(names))
            self._namespaces = Namespaces(self.directory, names)
            self._owned.publish_holder(self._namespaces.holder_pid)
            slow = [frozenset(pair) for pair in (*with_latency, *_slowed(self.layout.timeline))]
            self._network = Network(self.layout, self._namespaces, slow)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def hosts(self) -> tuple[Host, ...]:
        """The hosts in the order of their ranks."""
        return self.layout.hosts

    def start(
        self,
        host: str,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        cwd: Path | None = None,
        stdin: Stream = subprocess.DEVNULL,
        stdout: Stream = None,
        stderr: Stream = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command in a host.

        Args:
            host: The host's name.
            command: Program and arguments.
            env: Variables in addition to this process's and to those of ``environment``.
            cwd: The working directory; by default this process's.
            stdin: As those of ``subprocess.Popen``, and so are ``stdout`` and ``stderr``.

        Returns:
            The process, in a session of its own; signals sent to it reach the command.
        """
        found = self.layout.host(host)
        return self._started().start(
            found.index,
            command,
            environment={**python_environment(os.environ), **self.environment(host), **(env or {})},
            directory=cwd or Path.cwd(),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )

    def start_control(
        self,
        command: Sequence[str],
        *,
        stdin: Stream = subprocess.DEVNULL,
        stdout: Stream = None,
        stderr: Stream = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command in the namespace that all hosts reach over the control network."""
        return self._started().start(
            CONTROL,
            command,
            environment=python_environment(os.environ),
            directory=self.directory,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )

    def environment(self, host: str) -> dict[str, str]:
        """The environment of a host's commands: the interface to the emulated network for gloo and
        NCCL, the host's own run directory, and a cache of the lab's, so that nothing that jobs
        learn here leaves it."""
        runs = self.runs_directory(host)
        runs.mkdir(mode=0o700, exist_ok=True)
        return {
            "GLOO_SOCKET_IFNAME": DATA_DEVICE,
            "NCCL_SOCKET_IFNAME": f"={DATA_DEVICE}",
            "XDG_RUNTIME_DIR": str(runs),
            "XDG_CACHE_HOME": str(runs),
        }

    def runs_directory(self, host: str) -> Path:
        """Where the run directories of a host's jobs are."""
        return self.directory / str(self.layout.host(host).index)

    def store_url(self) -> str:
        """The address of the lab's etcd, which is started when it is first asked for.

        Raises:
            ConfigError: it can't be started.
        """
        if self._store is None:
            command = [sys.executable, "-P", "-m", "trainmesh.launcher.lab.store"]
            self._store = self.start_control(
                [*command, str(self.directory), CONTROL_ADDRESS],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            self._url = _first_line(self._store)
        if not self._url:
            raise ConfigError("the lab's etcd can't be started")
        return self._url

    def address(self, host: str) -> str:
        """A host's address on the emulated network."""
        return data_address(self.layout.host(host).index)

    def control_address(self, host: str) -> str:
        """A host's address on the control network, which has no limits."""
        return control_address(self.layout.host(host).index)

    def condition(self, src: str, dst: str) -> Condition:
        """The current state of a link in the direction from ``src`` to ``dst``."""
        return self._built().condition(src, dst)

    def set_rate(
        self, link: tuple[str, str], bandwidth_bytes_per_s: float, *, both: bool = True
    ) -> None:
        """Change a link's bandwidth.

        Args:
            link: The two nodes that the topology file links.
            bandwidth_bytes_per_s: Of Ethernet frames with their headers, in bytes per second.
            both: In both directions, not only from the first node to the second.
        """
        if not bandwidth_bytes_per_s > 0:
            raise ConfigError(f"link {'-'.join(link)}: the bandwidth must be positive")
        self.change(link, both=both, bandwidth_bytes_per_s=bandwidth_bytes_per_s)

    def set_latency(self, link: tuple[str, str], latency_s: float, *, both: bool = True) -> None:
        """Change the one-way latency of a link that was built for it (see ``with_latency``)."""
        self.change(link, both=both, latency_s=latency_s)

    def set_loss(self, link: tuple[str, str], loss: float, *, both: bool = True) -> None:
        """Change the share of packets that is lost on a link that was built for it."""
        self.change(link, both=both, loss=loss)

    def cut(self, link: tuple[str, str], *, both: bool = True) -> None:
        """Drop every packet on a link, silently, until ``restore``."""
        self.change(link, both=both, down=True)

    def restore(self, link: tuple[str, str], *, both: bool = True) -> None:
        """Make a link what the topology file says."""
        for src, dst in _directions(link, both):
            self._built().change(src, dst, self._built().declared(src, dst))

    def change(self, link: tuple[str, str], *, both: bool = True, **changes: float | bool) -> None:
        """Change fields of a link's ``Condition``."""
        for src, dst in _directions(link, both):
            condition = replace(self._built().condition(src, dst), **changes)  # type: ignore[arg-type]
            self._built().change(src, dst, condition)

    def apply(self, change: LinkChange) -> None:
        """Do what an entry of a timeline says."""
        if change.restore:
            self.restore(change.link, both=change.both)
            return
        changes: dict[str, float | bool] = {"down": change.down}
        for name in ("bandwidth_bytes_per_s", "latency_s", "loss"):
            value = getattr(change, name)
            if value is not None:
                changes[name] = value
        self.change(change.link, both=change.both, **changes)

    def close(self) -> None:
        """End all processes and remove everything; may be called twice."""
        network, self._network = self._network, None
        if network is not None:
            network.close()
        store, self._store = self._store, None
        if store is not None:
            store.kill()
            store.communicate()
        namespaces, self._namespaces = self._namespaces, None
        if namespaces is not None:
            namespaces.close()
        self._owned.remove()

    def _started(self) -> Namespaces:
        if self._namespaces is None:
            raise ConfigError("the lab is closed")
        return self._namespaces

    def _built(self) -> Network:
        if self._network is None:
            raise ConfigError("the lab is closed")
        return self._network


def _directions(link: tuple[str, str], both: bool) -> list[tuple[str, str]]:
    src, dst = link
    return [(src, dst), (dst, src)] if both else [(src, dst)]


def _first_line(process: subprocess.Popen[bytes]) -> str:
    stdout = process.stdout
    if stdout is None or not has_input(stdout, STORE_START_S):
        return ""
    return stdout.readline().decode().strip()


def _slowed(timeline: Iterable[LinkChange]) -> list[tuple[str, str]]:
    """The links that get a latency or loss later."""
    return [change.link for change in timeline if change.latency_s or change.loss]
