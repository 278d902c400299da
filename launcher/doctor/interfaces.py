"""Which of this machine's network interfaces could carry a job over several machines.

What an interface is follows from Linux's ``/sys/class/net`` rather than from its name: a device
behind it or below it (a bond, a VLAN or a bridge has those it stands on as ``lower_*``) leads out
of the machine; docker0, virbr0, dummy and ifb have none. Inside a container the only interface
may be one end of a pair whose other end is elsewhere, or what the default route leaves by.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from trainmesh.probe.interface import address_of

__all__ = ["Interface", "Reach", "describe", "look", "others", "suggested"]

SYS = Path("/sys/class/net")
PROC = Path("/proc/net")
IFF_UP, IFF_LOOPBACK = 0x1, 0x8
ETHER, INFINIBAND, LOOPBACK = 1, 32, 772
"""ARPHRD_* of linux/if_arp.h. Tunnels have many, such as 65534 (tun, WireGuard) and 778 (GRE)."""
DOWN = frozenset({"down", "lowerlayerdown", "notpresent"})
"""operstate; many virtual devices that are up say unknown."""
MAX_DEPTH = 8
"""Of interfaces that stand on others, such as a bridge on a VLAN on a bond."""
DEFAULT_V4, DEFAULT_V6 = "00000000", "0" * 32
MAX_NAMED = 4
"""In one line; of more there is the number."""


class Reach(IntEnum):
    """How likely an interface leads to the other machines; the lower, the likelier."""

    DEVICE = 0
    """A network card, or something that stands on one."""
    DEFAULT_ROUTE = 1
    """Virtual, but packets to elsewhere leave by it: a container's interface."""
    PAIR = 2
    """Virtual, with an end in another network namespace: a container's further interface."""
    SECONDARY = 3
    """Wireless or USB; the latter is often the server's own management card."""
    TUNNEL = 4
    NOWHERE = 5


@dataclass(frozen=True)
class Interface:
    """One network interface. ``why`` says what it is, or why it leads nowhere."""

    name: str
    reach: Reach
    why: str
    address: str | None = None
    speed_Mbps: int = 0
    has_default_route: bool = False


def look(
    names: Iterable[str] | None = None,
    *,
    sys: Path = SYS,
    proc: Path = PROC,
    address: Callable[[str], str | None] = address_of,
) -> list[Interface]:
    """All interfaces of this network namespace; never raises.

    Args:
        names: None takes those that the kernel names.
        sys, proc, address: Where the facts are from.
    """
    if names is None:
        names = [name for _, name in socket.if_nameindex()]
    routed = _default_routes(proc)
    return [_interface(sys, name, address(name), name in routed) for name in names]


def suggested(interfaces: Iterable[Interface]) -> list[Interface]:
    """Those that most likely lead to other machines, the fastest first."""
    leading = [one for one in interfaces if one.reach is not Reach.NOWHERE]
    best = min((one.reach for one in leading), default=Reach.NOWHERE)
    alike = {best, Reach.PAIR} if best is Reach.DEFAULT_ROUTE else {best}
    return sorted(
        (one for one in leading if one.reach in alike),
        key=lambda one: (one.reach, -one.speed_Mbps, not one.has_default_route, one.name),
    )


def others(interfaces: Iterable[Interface]) -> list[Interface]:
    """Those that ``suggested`` leaves out."""
    interfaces = list(interfaces)
    taken = {one.name for one in suggested(interfaces)}
    return [one for one in interfaces if one.name not in taken]


def describe(interfaces: Sequence[Interface], between: str = ", ") -> str:
    """``eth0 (10.0.0.5, 25 Gbit/s, default route)`` of each, up to some."""
    shown = [f"{one.name} ({', '.join(_facts(one))})" for one in interfaces[:MAX_NAMED]]
    if len(interfaces) > MAX_NAMED:
        shown.append(f"{len(interfaces) - MAX_NAMED} more")
    return between.join(shown)


def _facts(one: Interface) -> list[str]:
    facts = [one.why]
    if one.reach is not Reach.NOWHERE:
        facts += [one.address] if one.address else []
        facts += [f"{one.speed_Mbps / 1000:g} Gbit/s"] if one.speed_Mbps else []
        facts += ["default route"] if one.has_default_route else []
    return facts


def _interface(sys: Path, name: str, address: str | None, has_default_route: bool) -> Interface:
    folder = sys / name
    reach, why = _reach(folder, address, has_default_route)
    speed_Mbps = max(_number(folder / "speed"), 0)
    return Interface(name, reach, why, address, speed_Mbps, has_default_route)


def _reach(folder: Path, address: str | None, has_default_route: bool) -> tuple[Reach, str]:
    if problem := _problem(folder, address):
        return Reach.NOWHERE, problem
    if _is_secondary(folder):
        is_usb = "usb" in _device_path(folder)
        return Reach.SECONDARY, "USB, perhaps a management card" if is_usb else "wireless"
    kind = _kind(folder)
    if _leads_to_device(folder):
        return Reach.DEVICE, kind
    if kind == "tunnel":
        return Reach.TUNNEL, kind
    if has_default_route:
        return Reach.DEFAULT_ROUTE, "virtual"
    if kind == "bridge":
        return Reach.NOWHERE, "a bridge inside this machine"
    if not folder.is_dir():
        return Reach.PAIR, "kind not known"
    if _has_end_elsewhere(folder):
        return Reach.PAIR, "virtual"
    return Reach.NOWHERE, "virtual, inside this machine"


def _problem(folder: Path, address: str | None) -> str:
    """Why nothing can be reached by it, whatever it is; "" if nothing speaks against it."""
    flags = _number(folder / "flags", IFF_UP)
    if flags & IFF_LOOPBACK or _number(folder / "type") == LOOPBACK:
        return "loopback"
    if not flags & IFF_UP or _text(folder / "operstate") in DOWN:
        return "down"
    if address is None:
        master = _link_target(folder / "master")
        return f"part of {master}" if master else "no address"
    found = ipaddress.ip_address(address)
    if found.is_loopback:
        return "loopback"
    return "link-local address only" if found.is_link_local else ""


def _kind(folder: Path) -> str:
    arp = _number(folder / "type", ETHER)
    if arp == INFINIBAND:
        return "InfiniBand"
    if arp != ETHER or (folder / "tun_flags").exists():
        return "tunnel"
    kinds = {"bridge": "bridge", "bonding": "bond"}
    found = next((kind for name, kind in kinds.items() if (folder / name).is_dir()), "")
    return found or ("VLAN" if "DEVTYPE=vlan" in _text(folder / "uevent").split() else "Ethernet")


def _leads_to_device(folder: Path, depth: int = 0) -> bool:
    if (folder / "device").exists():
        return True
    if depth == MAX_DEPTH:
        return False
    lower = [link.name.removeprefix("lower_") for link in _entries(folder, "lower_*")]
    return any(_leads_to_device(folder.parent / name, depth + 1) for name in lower)


def _has_end_elsewhere(folder: Path) -> bool:
    """Whether it is one of a pair (veth), or stands on one (macvlan), that is in another network
    namespace: no interface here has the number, or that one does not point back."""
    own, other = _number(folder / "ifindex"), _number(folder / "iflink")
    return own != other and not any(
        (_number(one / "ifindex"), _number(one / "iflink")) == (other, own)
        for one in _entries(folder.parent, "*")
    )


def _is_secondary(folder: Path) -> bool:
    return (
        (folder / "phy80211").exists()
        or (folder / "wireless").exists()
        or "usb" in _device_path(folder)
    )


def _device_path(folder: Path) -> str:
    """Of the device, which names the buses on the way to it: pci, usb, virtio."""
    device = folder / "device"
    try:
        return str(device.resolve(strict=True).relative_to(folder.parent.resolve().parent.parent))
    except (OSError, RuntimeError, ValueError):
        return ""


def _default_routes(proc: Path) -> set[str]:
    """The interfaces by which packets to elsewhere leave."""
    v4 = [line.split() for line in _text(proc / "route").splitlines()]
    v6 = [line.split() for line in _text(proc / "ipv6_route").splitlines()]
    routed = {words[0] for words in v4 if len(words) > 7 and words[1] == words[7] == DEFAULT_V4}
    routed |= {
        words[9] for words in v6 if len(words) == 10 and words[0] == DEFAULT_V6 and words[1] == "00"
    }
    return routed


def _entries(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def _text(path: Path) -> str:
    """What a file says; "" where it can't be read, as ``speed`` of an interface without carrier."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path, default: int = 0) -> int:
    try:
        return int(_text(path), 0)
    except ValueError:
        return default


def _link_target(path: Path) -> str:
    try:
        return path.readlink().name
    except OSError:
        return ""
