"""Which of this host's addresses the job's traffic leaves from."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path

from trainmesh.errors import ConfigError
from trainmesh.store.address import is_loopback, parse_url

__all__ = ["LOOPBACK", "address_of", "job_address", "machine_id"]

LOOPBACK = "127.0.0.1"
SIOCGIFADDR = 0x8915
"""Linux: the IPv4 address of an interface (netdevice(7))."""


def machine_id() -> str:
    """The kernel's boot id: equal on two processes if they run on one machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def job_address(
    etcd: str, backend: str, environ: Mapping[str, str] = os.environ
) -> tuple[str, str]:
    """The interface and the address that ``backend`` uses between nodes.

    A job whose etcd is on loopback has one machine, and nothing may listen on others. Else it is
    what ``NCCL_SOCKET_IFNAME`` (backend nccl) or ``GLOO_SOCKET_IFNAME`` name, or, where they are
    not set, the address from which etcd is reached.

    Raises:
        ConfigError: the variable names no interface with an address.
    """
    host, port, _ = parse_url(etcd)
    if is_loopback(host):
        return "lo", LOOPBACK if host == "localhost" else host  # ::1 where there is no IPv4
    variable = "NCCL_SOCKET_IFNAME" if "nccl" in backend else "GLOO_SOCKET_IFNAME"
    wanted = environ.get(variable)
    if not wanted:
        address = _source_address(host, port)
        names = (name for _, name in socket.if_nameindex() if address_of(name) == address)
        return next(names, ""), address
    for _, name in socket.if_nameindex():
        if _named(name, wanted, prefixes=variable.startswith("NCCL")):
            found = address_of(name)
            if found is not None:
                return name, found
    raise ConfigError(f"{variable}={wanted}: no such interface with an address on this host")


def _named(name: str, wanted: str, *, prefixes: bool) -> bool:
    """Whether ``wanted`` means ``name``. Gloo wants names, a comma between two; NCCL wants
    prefixes, with ``=`` before exact names and ``^`` before what is to be left out."""
    excluded = prefixes and wanted.startswith("^")
    words = wanted.removeprefix("^") if prefixes else wanted
    exact = not prefixes or words.startswith("=")
    known = [word for word in words.removeprefix("=").split(",") if word]
    found = name in known if exact else any(name.startswith(word) for word in known)
    return found != excluded and not (excluded and name == "lo")


def address_of(name: str) -> str | None:
    """The interface's IPv4 address, else its first IPv6 address that is not link-local."""
    request = struct.pack("256s", name.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            return socket.inet_ntoa(fcntl.ioctl(asked, SIOCGIFADDR, request)[20:24])
        except OSError:
            pass  # no IPv4 address
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:
        return None
    for digits, _, _, scope, _, owner in (line.split() for line in lines):
        if owner == name and scope == "00":
            return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
    return None


def _source_address(host: str, port: int) -> str:
    """The address from which packets to ``host`` leave; sends nothing."""
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_DGRAM
        )
        with socket.socket(family, kind, protocol) as asked:
            asked.connect(address)
            return str(asked.getsockname()[0])
    except OSError as error:
        raise ConfigError(f"no route to etcd at {host}: {error}") from error
