"""Builds a layout's bridges, veth pairs and TAP devices, and changes the state of its links.

Each host has ``eth0``, its link to a switch, and ``ctl0``, a link without limits to the namespace
of the switches, for rendezvous and store: trainmesh's own messages must not compete with the job's
traffic.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainmesh.errors import ConfigError
from trainmesh.launcher.lab.layout import LabLayout, Wire
from trainmesh.launcher.lab.network.cable import CableEnd, Cables
from trainmesh.launcher.lab.network.namespaces import CONTROL, Namespaces
from trainmesh.launcher.lab.network.shape import (
    EMULATED_LATENCY_S,
    Condition,
    change_commands,
    first_commands,
)
from trainmesh.launcher.lab.tools import with_system_path

__all__ = [
    "CONTROL_ADDRESS",
    "DATA_DEVICE",
    "Network",
    "control_address",
    "data_address",
    "hosts_file",
]

DATA_DEVICE = "eth0"
CONTROL_DEVICE = "ctl0"
CONTROL_BRIDGE = "control"
CONTROL_ADDRESS = "10.254.0.1"
TOOL_S = 20.0
"""For a batch of `ip` or `tc` commands on a machine that may be busy."""


def data_address(host: int) -> str:
    """The address on the emulated network of the host with this index."""
    return f"10.77.{(host + 1) // 256}.{(host + 1) % 256}"


def control_address(host: int) -> str:
    """The address on the control network of the host with this index."""
    return f"10.254.{(host + 2) // 256}.{(host + 2) % 256}"


def hosts_file(names: Sequence[str]) -> str:
    """An ``/etc/hosts`` for hosts with these names: on the control network by name, on the
    emulated one as ``NAME-data``."""
    lines = ["127.0.0.1 localhost"]
    for index, name in enumerate(names):
        for address, known in (
            (control_address(index), name),
            (data_address(index), f"{name}-data"),
        ):
            # Mapped ones too: c10d's store listens on IPv6 and looks up who has connected.
            lines += [f"{address} {known}", f"::ffff:{address} {known}"]
    return "".join(f"{line}\n" for line in lines)


@dataclass(frozen=True)
class _Direction:
    """Where one direction of a wire is shaped: the device whose outgoing packets it is."""

    host: int
    device: str
    cable: int | None
    """Number of the cable if the wire is one with latency and loss."""
    is_forward: bool


class Network:
    """The devices of a lab.

    Args:
        layout: What to build.
        namespaces: Where; of ``layout``'s hosts, in their order.
        with_latency: Wires, as pairs of nodes, whose latency or loss may be set later; those
            with a latency from the beginning need not be named.

    Raises:
        ConfigError: ip, tc or a part of the kernel is missing.
    """

    def __init__(
        self,
        layout: LabLayout,
        namespaces: Namespaces,
        with_latency: Iterable[frozenset[str]] = (),
    ) -> None:
        self._namespaces = namespaces
        self._layout = layout
        self._cables: Cables | None = None
        self._directions: dict[tuple[str, str], _Direction] = {}
        self._declared: dict[tuple[str, str], Condition] = {}
        self._now: dict[tuple[str, str], Condition] = {}
        wanted = set(with_latency)
        tapped = [wire for wire in layout.wires if _is_slow(wire, wanted)]
        self._plan(tapped)
        self._build(tapped)

    def condition(self, src: str, dst: str) -> Condition:
        """The current state of the link in the direction from ``src`` to ``dst``.

        Raises:
            ConfigError: there is no such link between a host and a switch, or two switches.
        """
        if (src, dst) not in self._now:
            known = ", ".join(f"{wire.a}-{wire.b}" for wire in self._layout.wires[:8])
            raise ConfigError(f"the lab has no link {src}-{dst}; its links are {known}")
        return self._now[src, dst]

    def declared(self, src: str, dst: str) -> Condition:
        """What the link did in the beginning."""
        self.condition(src, dst)
        return self._declared[src, dst]

    def change(self, src: str, dst: str, condition: Condition) -> None:
        """Set the state of the link from ``src`` to ``dst``.

        Raises:
            ConfigError: no such link, or latency or loss for one that was not built for it.
        """
        before = self.condition(src, dst)
        direction = self._directions[src, dst]
        if (condition.latency_s, condition.loss) != (before.latency_s, before.loss):
            if direction.cable is None or self._cables is None:
                raise ConfigError(
                    f"link {src}-{dst} has no latency or loss to change: give it an alpha_us of "
                    f"{EMULATED_LATENCY_S * 1e6:.0f} or more, or name it in with_latency"
                )
            self._cables.change(direction.cable, direction.is_forward, condition)
        self._run("tc", {direction.host: change_commands(direction.device, condition)})
        self._now[src, dst] = condition

    def close(self) -> None:
        """End what carries packets; the devices go with their namespaces."""
        if self._cables is not None:
            self._cables.close()

    def _plan(self, tapped: Sequence[Wire]) -> None:
        hosts = {host.name: host.index for host in self._layout.hosts}
        for number, wire in enumerate(self._layout.wires):
            cable = tapped.index(wire) if wire in tapped else None
            host = hosts[wire.a_place] if wire.a_is_host else CONTROL
            device = DATA_DEVICE if wire.a_is_host else f"w{number}a"
            ends = {
                (wire.a, wire.b): (_Direction(host, device, cable, True), wire.forward),
                (wire.b, wire.a): (_Direction(CONTROL, f"w{number}b", cable, False), wire.backward),
            }
            for ways, (direction, cost) in ends.items():
                latency_s = cost.alpha_s if cost.alpha_s >= EMULATED_LATENCY_S else 0.0
                self._directions[ways] = direction
                self._declared[ways] = Condition(cost.bandwidth_bytes_per_s, latency_s)
        self._now = dict(self._declared)

    def _build(self, tapped: Sequence[Wire]) -> None:
        if tapped:
            self._cables = Cables(
                self._namespaces,
                [(self._ending(wire.a, wire.b), self._ending(wire.b, wire.a)) for wire in tapped],
            )
        for number, wire in enumerate(tapped):
            for ways in ((wire.a, wire.b), (wire.b, wire.a)):
                condition = self._declared[ways]
                if self._cables is not None:
                    self._cables.change(number, self._directions[ways].is_forward, condition)
        self._run("ip", {CONTROL: self._control_lines(tapped)})
        self._run("ip", {host.index: _host_lines(host.index) for host in self._layout.hosts})
        rates: dict[int, list[str]] = {}
        for ways, direction in self._directions.items():
            lines = first_commands(direction.device, self._declared[ways])
            rates.setdefault(direction.host, []).extend(lines)
        self._run("tc", rates)

    def _ending(self, src: str, dst: str) -> CableEnd:
        direction = self._directions[src, dst]
        return CableEnd(direction.host, direction.device)

    def _control_lines(self, tapped: Sequence[Wire]) -> list[str]:
        bridges = {name: f"br{number}" for number, name in enumerate(self._layout.switches)}
        lines = ["link set lo up"]
        for bridge in (CONTROL_BRIDGE, *bridges.values()):
            lines += [
                f"link add {bridge} type bridge stp_state 0 mcast_snooping 0",
                f"link set {bridge} addrgenmode none",
                f"link set {bridge} up",
            ]
        lines.append(f"addr add {CONTROL_ADDRESS}/16 dev {CONTROL_BRIDGE}")
        for host in self._layout.hosts:
            lines += _pair(f"c{host.index}", CONTROL_DEVICE, self._path(host.index))
            lines += _port(f"c{host.index}", CONTROL_BRIDGE)
        for wire in self._layout.wires:
            near, far = self._directions[wire.b, wire.a], self._directions[wire.a, wire.b]
            if wire not in tapped:
                where = self._path(far.host) if wire.a_is_host else None
                lines += _pair(near.device, far.device, where)
            lines += _port(near.device, bridges[wire.b_place])
            if not wire.a_is_host:
                lines += _port(far.device, bridges[wire.a_place])
        return lines

    def _path(self, host: int) -> str:
        """A host's network namespace, as ip takes it."""
        return f"/proc/self/fd/{self._namespaces.network_file(host)}"

    def _run(self, program: str, batches: Mapping[int, Sequence[str]]) -> None:
        """Run lines of ``ip -batch`` or ``tc -batch`` in hosts and in ``CONTROL``, all at once."""
        networks = [self._namespaces.network_file(host.index) for host in self._layout.hosts]
        running = [
            (
                self._namespaces.start(
                    host,
                    [program, "-batch", "-"],
                    environment=with_system_path(os.environ),
                    directory=Path("/"),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    more_files=networks if host == CONTROL else (),
                ),
                "".join(f"{line}\n" for line in lines),
            )
            for host, lines in batches.items()
        ]
        words = [_finish(process, text) for process, text in running]
        for problem in filter(None, words):
            raise ConfigError(f"{program} refuses: {problem}; trainmesh lab check says more")


def _finish(process: subprocess.Popen[bytes], text: str) -> str | None:
    """What a batch complained about."""
    try:
        _, errors = process.communicate(text.encode(), timeout=TOOL_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"no end after {TOOL_S:g} s"
    lines = errors.decode(errors="replace").strip().splitlines()
    return (lines or [f"exit code {process.returncode}"])[0] if process.returncode else None


def _is_slow(wire: Wire, wanted: set[frozenset[str]]) -> bool:
    alpha_s = max(wire.forward.alpha_s, wire.backward.alpha_s)
    return alpha_s >= EMULATED_LATENCY_S or frozenset((wire.a, wire.b)) in wanted


def _pair(device: str, peer: str, peer_namespace: str | None) -> list[str]:
    where = f" netns {peer_namespace}" if peer_namespace else ""
    return [f"link add {device} type veth peer name {peer}{where}"]


def _port(device: str, bridge: str) -> list[str]:
    return [
        f"link set {device} addrgenmode none",
        f"link set {device} master {bridge}",
        f"link set {device} up",
    ]


def _host_lines(host: int) -> list[str]:
    lines = ["link set lo up"]
    addresses = {DATA_DEVICE: data_address(host), CONTROL_DEVICE: control_address(host)}
    for device, address in addresses.items():
        lines += [
            f"link set {device} addrgenmode none",
            f"addr add {address}/16 dev {device}",
            f"link set {device} up",
        ]
    return lines
