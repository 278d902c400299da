"""What a lab needs of this machine, tried out."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainmesh.errors import ConfigError
from trainmesh.launcher.lab.network.cable import CableEnd, Cables
from trainmesh.launcher.lab.network.namespaces import CONTROL, Namespaces
from trainmesh.launcher.lab.tools import find_tool, with_system_path

__all__ = ["Capability", "capabilities", "missing"]

TOOL_S = 10.0
"""For a tool that only says its version or makes one namespace."""
PACKAGES = {"unshare": "util-linux", "ip": "iproute2", "tc": "iproute2"}


@dataclass(frozen=True)
class Capability:
    """One requirement, met or not; ``advice`` says how to meet it, ``needed`` whether all labs need
    it."""

    name: str
    use: str
    found: bool
    advice: str = ""
    needed: bool = True


def capabilities() -> list[Capability]:
    """Try everything out in namespaces of their own; takes about a second."""
    found = [
        Capability(
            f"program {program}",
            "makes namespaces" if program == "unshare" else "makes devices",
            find_tool(program) is not None,
            f"apt-get install {package}",
        )
        for program, package in PACKAGES.items()
    ]
    found += [_rootless()]
    if not all(capability.found for capability in found if capability.needed):
        return found
    with tempfile.TemporaryDirectory(prefix="trainmesh-check-") as directory:
        place = Path(directory)
        (place / "hosts").write_text("127.0.0.1 localhost\n")
        try:
            namespaces = Namespaces(place, ["probe"])
        except ConfigError as error:
            return [*found, _namespaces(str(error))]
        try:
            return [*found, _namespaces(""), *_devices(namespaces), _tap(namespaces)]
        finally:
            namespaces.close()


def missing(found: Sequence[Capability]) -> list[str]:
    """One line for each thing that all labs need and that is not there."""
    return [
        f"no {capability.name}: {capability.advice}"
        for capability in found
        if capability.needed and not capability.found
    ]


def _rootless() -> Capability:
    user = [] if os.geteuid() != 0 else ["setpriv", "--reuid=65534", "--clear-groups"]
    return Capability(
        "user namespaces",
        "a lab without root",
        _runs([*user, "unshare", "--user", "--map-root-user", "--net", "true"]),
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0 or run as root; in a container, "
        "run it with --privileged",
        needed=os.geteuid() != 0,
    )


def _namespaces(refusal: str) -> Capability:
    advice = f"{refusal.partition(';')[0]}; in a container, run it with --privileged"
    return Capability("namespaces", "hosts", not refusal, advice)


def _devices(namespaces: Namespaces) -> list[Capability]:
    tried = [
        ("veth", "links", "ip link add v0 type veth peer name v1", "modprobe veth"),
        ("bridge", "switches", "ip link add b0 type bridge", "modprobe bridge"),
        ("htb", "rates", "tc qdisc add dev v0 root handle 1: htb", "modprobe sch_htb"),
        ("bfifo", "queues", "tc qdisc add dev v1 root bfifo limit 9000", "a kernel with sch_fifo"),
    ]
    found = []
    for name, use, command, advice in tried:
        process = namespaces.start(
            CONTROL,
            command.split(),
            environment=with_system_path(os.environ),
            directory=Path("/"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        found.append(Capability(name, use, process.wait(TOOL_S) == 0, advice))
    return found


def _tap(namespaces: Namespaces) -> Capability:
    try:
        Cables(namespaces, [(CableEnd(CONTROL, "t0"), CableEnd(0, "t1"))]).close()
        works = True
    except ConfigError:
        works = False
    advice = "modprobe tun; in a container, run it with --device /dev/net/tun"
    return Capability("tap", "latency and loss", works, advice, needed=False)


def _runs(command: Sequence[str]) -> bool:
    try:
        done = subprocess.run(command, capture_output=True, timeout=TOOL_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
