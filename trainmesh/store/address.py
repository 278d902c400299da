"""Where the user's etcd is and how it is reached safely: URL, certificates, user."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from typing import TypedDict
from urllib.parse import urlsplit

from trainmesh.errors import ConfigError

__all__ = ["Security", "is_loopback", "parse_url", "security_from_environment"]

DEFAULT_PORT = 2379
"""etcd's port for clients."""


class Security(TypedDict):
    """The security arguments of ``trainmesh.store.etcd.connect``: paths, and the user."""

    ca_cert: str | None
    cert: str | None
    key: str | None
    user: str | None
    password: str | None


def parse_url(url: str) -> tuple[str, int, bool]:
    """Host, port and whether TLS is wanted.

    Raises:
        ConfigError: not ``http(s)://host[:port]``.
    """
    try:
        parts = urlsplit(url)
        port = DEFAULT_PORT if parts.port is None else parts.port
    except ValueError as error:
        raise ConfigError(f"{_expected(url)}: {error}") from error
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            "an etcd URL must not hold a user or password, it would show in process lists; "
            "set TRAINMESH_ETCD_USER and TRAINMESH_ETCD_PASSWORD"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ConfigError(_expected(url))
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ConfigError(f"{_expected(url)}, with nothing after the port")
    return parts.hostname, port, parts.scheme == "https"


def _expected(url: str) -> str:
    return f"etcd URL {url!r} must be http://host:port or https://host:port"


def is_loopback(host: str) -> bool:
    """Whether ``host`` (a name or an address) is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def security_from_environment(environ: Mapping[str, str] = os.environ) -> Security:
    """``TRAINMESH_ETCD_CA``, ``_CERT``, ``_KEY``, ``_USER`` and ``_PASSWORD``; variables,
    because flags show in process lists."""
    return Security(
        ca_cert=environ.get("TRAINMESH_ETCD_CA") or None,
        cert=environ.get("TRAINMESH_ETCD_CERT") or None,
        key=environ.get("TRAINMESH_ETCD_KEY") or None,
        user=environ.get("TRAINMESH_ETCD_USER") or None,
        password=environ.get("TRAINMESH_ETCD_PASSWORD") or None,
    )
