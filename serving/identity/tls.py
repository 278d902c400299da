"""TLS of the listener and towards endpoints: TLS 1.2 or later, names checked, never downgraded.

Renewed files are picked up without a restart: ``renew`` is called every few seconds by whoever
owns the object; new handshakes use the new files, open connections stay as they are. Files that
can't be used (half written, expired) leave the old ones in use and are reported once.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from typing import Any

from trainmesh.serving.config.types import TlsConfig, UpstreamTls
from trainmesh.serving.identity.certificates import FileProblem, check_authority, check_pair

__all__ = ["ServerTls", "UpstreamSide", "peer_names"]

SPIFFE = "spiffe://"


class _Renewed:
    """A context that is made anew when one of its files has changed."""

    def __init__(self, files: tuple[str, ...], make: Callable[[], ssl.SSLContext]) -> None:
        self._files = tuple(file for file in files if file)
        self._make = make
        self._seen = self._signature()
        self._problem = ""
        self.context = make()

    def renew(self) -> str:
        """Look at the files again. A line to log: what was renewed or why it can't be; empty if
        nothing has changed."""
        signature = self._signature()
        if signature == self._seen:
            return ""
        try:
            self.context = self._make()
        except FileProblem as error:  # half of them is new, or not valid yet: tried again
            problem = f"certificates are kept as they were: {error}"
            told, self._problem = self._problem, problem
            return problem if problem != told else ""
        self._seen, self._problem = signature, ""
        return f"certificates renewed from {', '.join(self._files)}"

    def _signature(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_stamp(file) for file in self._files)


class ServerTls:
    """The listener's side.

    Attributes:
        context: for the server's sockets, always the same; each handshake takes the newest files.
    """

    def __init__(self, tls: TlsConfig) -> None:
        """Read the files of ``tls``.

        Raises:
            FileProblem: they can't be used.
        """
        self._tls = tls
        self._newest = _Renewed((tls.cert, tls.key, tls.client_ca), self._make)
        self.context = self._newest.context
        self.context.sni_callback = self._take_newest

    def renew(self) -> str:
        """Look at the files again; the line to log, empty if nothing has changed."""
        return self._newest.renew()

    def _take_newest(self, connection: Any, _name: str | None, _context: ssl.SSLContext) -> None:
        """OpenSSL asks before it chooses a certificate, also clients that name no server."""
        connection.context = self._newest.context

    def _make(self) -> ssl.SSLContext:
        context = _plain(ssl.PROTOCOL_TLS_SERVER)
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
        _load_pair(context, self._tls.cert, self._tls.key)
        if self._tls.client_ca:
            _load_authority(context, self._tls.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
            # A resumed session would skip the check of a certificate that has expired since.
            context.options |= ssl.OP_NO_TICKET
            context.num_tickets = 0
        return context


class UpstreamSide:
    """The side towards one endpoint.

    Attributes:
        server_hostname: what to ask for in the handshake.
    """

    def __init__(self, tls: UpstreamTls, host: str) -> None:
        """Read the files of ``tls``. Without ``ca`` the system's authorities are trusted.

        Raises:
            FileProblem: they can't be used.
        """
        self._tls = tls
        self._spiffe = tls.san if tls.san.startswith(SPIFFE) else ""
        self.server_hostname = host if self._spiffe else tls.san or host
        self._newest = _Renewed((tls.ca, tls.cert, tls.key), self._make)

    @property
    def context(self) -> ssl.SSLContext:
        """For the next connection; a renewal changes it."""
        return self._newest.context

    def renew(self) -> str:
        """Look at the files again; the line to log, empty if nothing has changed."""
        return self._newest.renew()

    def problem(self, connection: ssl.SSLObject | ssl.SSLSocket) -> str:
        """Why the endpoint is not who it should be, after the handshake; empty if it is. A
        ``spiffe://`` name must be asked here, others OpenSSL has checked already."""
        if not self._spiffe:
            return ""
        names = peer_names(connection)
        if self._spiffe in names:
            return ""
        shown = ", ".join(names[:4]) or "no name"
        return f"the endpoint's certificate is for {shown}, not for {self._spiffe}"

    def _make(self) -> ssl.SSLContext:
        context = _plain(ssl.PROTOCOL_TLS_CLIENT)
        if self._tls.ca:
            _load_authority(context, self._tls.ca)
        else:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        if self._tls.cert:
            _load_pair(context, self._tls.cert, self._tls.key or self._tls.cert)
        # OpenSSL knows no URI names: problem() compares them, after the chain was verified here.
        context.check_hostname = not self._spiffe
        return context


def peer_names(connection: ssl.SSLObject | ssl.SSLSocket | None) -> tuple[str, ...]:
    """The verified names of the other side: ``spiffe://...`` and DNS names of its certificate's
    subject alternative names; empty without TLS or certificate."""
    certificate = connection.getpeercert() if connection is not None else None
    names: Any = (certificate or {}).get("subjectAltName", ())
    return tuple(
        value
        for kind, value in names
        if kind == "DNS" or (kind == "URI" and value.startswith(SPIFFE))
    )


def _plain(protocol: ssl._SSLMethod) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    return context


def _load_pair(context: ssl.SSLContext, cert: str, key: str) -> None:
    check_pair(cert, key)
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ValueError) as error:
        raise FileProblem("cert", f"{cert}: OpenSSL can't use it: {error}") from error


def _load_authority(context: ssl.SSLContext, path: str) -> None:
    check_authority(path)
    try:
        context.load_verify_locations(path)
    except (OSError, ValueError) as error:
        raise FileProblem("ca", f"{path}: OpenSSL can't use it: {error}") from error


def _stamp(file: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(file)
    except (OSError, ValueError):
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
