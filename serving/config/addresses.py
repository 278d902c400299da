"""Addresses as they are written in serve.yaml: listeners and endpoints' URLs."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from trainmesh.errors import ConfigError
from trainmesh.store.address import is_loopback

__all__ = [
    "OPENAI_ROOTS",
    "Listener",
    "ServerUrl",
    "call_in",
    "parse_listener",
    "parse_url",
    "same_server",
]

HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\.?\Z", re.ASCII)
PLAIN = re.compile(r"[!-~]*\Z", re.ASCII)
PATH = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/-]*\Z", re.ASCII)
LISTENER = re.compile(r"(?:\[(?P<ipv6>[^\]]*)\]|(?P<host>[^:]*)):(?P<port>[0-9]{1,5})\Z", re.ASCII)


OPENAI_ROOTS = ("/v1", "/v3")
"""The end of OpenAI's base URLs; OVMS has its API below /v3. URLs may have it or not."""


CALLS = ("/chat/completions", "/completions", "/responses", "/embeddings", "/models")
"""The paths that follow OpenAI's base URLs in requests; no endpoint's URL ends in one."""


class Listener(NamedTuple):
    """Where a server listens. Port 0: any that is free."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        return is_loopback(self.host)

    def overlaps(self, other: Listener) -> bool:
        """Both can't be listened on at once, however they are written."""
        one, two = _ip(self.host), _ip(other.host)
        if isinstance(one, str) or isinstance(two, str):
            same = one == two
        elif one.version == two.version:
            same = one == two or one.is_unspecified or two.is_unspecified
        else:  # :: takes IPv4's connections too
            same = (one if one.version == 6 else two).is_unspecified
        return same and self.port == other.port


class ServerUrl(NamedTuple):
    """Where a server is: ``http(s)://host:port/path``."""

    tls: bool
    host: str
    """Without brackets."""
    port: int
    path: str
    """The prefix of the server's own paths: empty, or ``/...`` without a slash at its end."""

    @property
    def authority(self) -> str:
        """``host:port``, as in a name or a Host field."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        return is_loopback(self.host)


def parse_listener(text: str) -> Listener:
    """``host:port`` or ``[IPv6]:port``.

    Raises:
        ConfigError: anything else; the message does not say where it was written.
    """
    found = LISTENER.match(text)
    host = found and (found["ipv6"] or found["host"])
    if not found or not host or not _is_host(host, ipv6=bool(found["ipv6"])):
        raise ConfigError(
            f"must be host:port, such as 127.0.0.1:8080, 0.0.0.0:8080 or [::1]:8080, "
            f"not {ascii(text[:80])}"
        )
    if int(found["port"]) > 65535:
        raise ConfigError(f"port {found['port']} is not in 0 to 65535")
    return Listener(host, int(found["port"]))


def parse_url(text: str) -> ServerUrl:
    """An endpoint's URL.

    Raises:
        ConfigError: not ``http(s)://host[:port][/path]``; the message does not say where it was
            written, and has the URL only if no password or key can be in it.
    """
    if not PLAIN.match(text):
        raise ConfigError("must be of printable ASCII characters without spaces")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ConfigError(
            f"must be http://host:port or https://host:port{_not_as(text)}"
        ) from error
    if problem := _url_problem(text, parts):
        raise ConfigError(f"{problem}{_not_as(text)}")
    tls = parts.scheme == "https"
    host = parts.hostname or ""
    return ServerUrl(tls, host, port or (443 if tls else 80), parts.path.rstrip("/"))


def same_server(url: ServerUrl) -> str:
    """A key that is equal for URLs of the same server, however they are written."""
    path = url.path[:-3] if url.path.endswith(OPENAI_ROOTS) else url.path
    return f"{'https' if url.tls else 'http'}://{url.authority.lower()}{path}"


def call_in(path: str) -> str:
    """The path of a request that an endpoint's URL ends in; "" if in none."""
    return next((call for call in CALLS if path.endswith(call)), "")


def _url_problem(text: str, parts: SplitResult) -> str:
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https"):
        return "must begin with http:// or https://"
    if parts.username is not None or parts.password is not None:
        return "must not hold a user or password; write the key's variable as api_key_env"
    if not _is_host(host, ipv6="[" in parts.netloc):
        return f"must have a host, as in {parts.scheme}://10.0.0.1:8000"
    if parts.port == 0 or parts.netloc.endswith(":"):
        return "the port must be 1 to 65535"
    if "?" in text or "#" in text:
        return "must not have a query or fragment (? or #)"
    segments = parts.path.split("/")
    if not PATH.match(parts.path) or ".." in segments or "." in segments or "//" in parts.path:
        return (
            "the path may hold letters, digits and -._~!$&'()*+,;=:@%/ and no . or .. or empty step"
        )
    return ""


def _not_as(text: str) -> str:
    """``, not 'what was written'``; without it where that may hold a password or a key."""
    return "" if any(mark in text for mark in "@?#") else f", not {ascii(text[:80])}"


def _ip(host: str) -> IPv4Address | IPv6Address | str:
    """A host's address, or its name in small letters."""
    try:
        address = ip_address("127.0.0.1" if host.lower() == "localhost" else host)
    except ValueError:
        return host.lower()
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _is_host(host: str, *, ipv6: bool) -> bool:
    if not ipv6:
        return len(host) <= 253 and bool(HOST.match(host))
    try:
        IPv6Address(host)
    except ValueError:
        return False
    return True
