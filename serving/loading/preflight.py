"""Checks of a configuration that depend on this machine, made by ``--check`` and before each start.

They open nothing for writing and leave nothing behind; they don't disturb a router that runs with
the same file.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from trainmesh.errors import ConfigError, GraphError
from trainmesh.places import places
from trainmesh.serving.config.addresses import Listener, parse_listener
from trainmesh.serving.config.types import Config
from trainmesh.serving.ledger.segments import ledger_dir
from trainmesh.serving.observe.trace import check_sdk
from trainmesh.topology.document import load_file

__all__ = ["check_free", "preflight", "reserve"]


def preflight(config: Config) -> None:
    """Whether both addresses are this machine's, two, and may be listened on, the topology file
    can be used, the run directory, audit log and ledger can be written, and traces can be sent.
    The admin's port isn't tried, as a router that runs with the file may have it.

    Raises:
        ConfigError: one can't.
    """
    reserve(config).close()
    _check_admin(config)
    if config.topology.file:
        try:
            load_file(Path(config.topology.file), pipe_s=0)
        except GraphError as error:
            raise ConfigError(f"topology.file: {error}") from error
    if config.telemetry.otlp:
        check_sdk()
    problems = {place.root: _unwritable_folder(place.root) for place in places()}
    if all(problems.values()):
        root, problem = next(iter(problems.items()))
        raise ConfigError(
            f"can't make a run directory in {root}: {problem}; set XDG_RUNTIME_DIR to a writable "
            "directory"
        )
    if config.audit and (problem := _unwritable_file(Path(config.audit))):
        raise ConfigError(f"audit: can't write to {config.audit}: {problem}")
    if config.ledger.enabled and (problem := _unwritable_folder(folder := ledger_dir(config))):
        raise ConfigError(
            f"ledger.dir: can't write to {folder}: {problem}; name a writable directory or set "
            "ledger.enabled to false"
        )


def _check_admin(config: Config) -> None:
    listen, admin = parse_listener(config.listen), parse_listener(config.admin)
    with socket.socket(_family(admin), socket.SOCK_STREAM) as probe:
        try:
            if probe.family == socket.AF_INET6:  # as asyncio does
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind((admin.host, 0))
        except OSError as error:
            raise ConfigError(f"admin: can't listen on {config.admin}: {error.strerror}") from error
    if listen.port and any(
        one.overlaps(two) for one in _resolved(listen) for two in _resolved(admin)
    ):
        raise ConfigError(
            f"admin: {config.admin} is the same address as listen; give it another port"
        )


def _family(listener: Listener) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in listener.host else socket.AF_INET


def _resolved(listener: Listener) -> list[Listener]:
    """The addresses of a listener whose host may be a name, which can be bound."""
    found = socket.getaddrinfo(listener.host, None, _family(listener), socket.SOCK_STREAM)
    return [Listener(str(address[0]), listener.port) for *_, address in found]


def check_free(config: Config) -> None:
    """Refuse an address that is in use: a second router there would get a part of the first one's
    requests, because sockets that may be shared (SO_REUSEPORT) don't refuse each other.

    Raises:
        ConfigError: somebody listens there.
    """
    reserve(config, shared=False).close()


def reserve(config: Config, *, shared: bool = True) -> socket.socket:
    """A socket that holds the address for the workers, who listen beside it (SO_REUSEPORT).

    Raises:
        ConfigError: the address can't be used.
    """
    listener = parse_listener(config.listen)
    reserved = socket.socket(_family(listener), socket.SOCK_STREAM)
    try:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        reserved.bind((listener.host, listener.port))
    except OSError as error:
        reserved.close()
        raise ConfigError(f"listen: can't listen on {config.listen}: {error.strerror}") from error
    return reserved


def _unwritable_file(path: Path) -> str:
    """Why a file can't be appended to, or made; "" if it can."""
    if not os.path.lexists(path):
        if not path.parent.exists():
            return "there is no such folder"
        return _unwritable_folder(path.parent)
    if path.is_dir():
        return "is a folder"
    return "" if os.access(path, os.W_OK) else "not permitted"


def _unwritable_folder(path: Path) -> str:
    """Why a folder can't be written to, or made with those above it; "" if it can."""
    for folder in (path, *path.parents):
        if os.path.lexists(folder):
            if not folder.is_dir():
                return f"{folder} is not a folder"
            return "" if os.access(folder, os.W_OK | os.X_OK) else f"{folder}: not permitted"
    return ""
