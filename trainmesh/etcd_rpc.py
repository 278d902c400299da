"""One etcd connection: calls that end in time, are tried again while they may, re-authenticate."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import trainmesh.etcd_proto

trainmesh.etcd_proto.prepare()

import etcd3  # noqa: E402
import grpc  # noqa: E402
from etcd3 import etcdrpc as rpc  # noqa: E402

from trainmesh.errors import StoreError  # noqa: E402

__all__ = ["TRANSIENT", "Connection", "prefix_end", "rpc"]

TRANSIENT = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAUTHENTICATED,
)
"""Codes after which the same call may succeed."""

OPTIONS = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", 64 << 20),
]


class Connection:
    """A channel to one etcd, with everything that a call needs.

    ``tls`` holds paths: (CA certificate, own certificate, own key), or None for plain text.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        timeout_s: float,
        tls: tuple[str, str | None, str | None] | None = None,
        user: tuple[str, str] | None = None,
    ) -> None:
        self.address = f"{host}:{port}"
        self.timeout_s = timeout_s
        self._user = user
        self._auth_lock = threading.Lock()
        self.metadata: Any = None
        ca_cert, cert, key = tls or (None, None, None)
        try:
            self._client = etcd3.client(
                host=host,
                port=port,
                timeout=timeout_s,
                ca_cert=ca_cert,
                cert_cert=cert,
                cert_key=key,
                grpc_options=OPTIONS,
            )
        except OSError as error:
            raise StoreError(f"etcd certificates: {error}") from error
        channel = self._client.channel
        self.kv = rpc.KVStub(channel)
        self.leases = rpc.LeaseStub(channel)
        self.watches = rpc.WatchStub(channel)
        self._auth = rpc.AuthStub(channel)

    def call(self, method: Callable[..., Any], request: Any) -> Any:
        """The reply to ``request``.

        Raises:
            StoreError: no answer within the time-out, or a refusal.
        """
        deadline_s = time.monotonic() + self.timeout_s
        backoff_s = 0.05
        while True:
            left_s = deadline_s - time.monotonic()
            try:
                return method(request, timeout=max(0.05, left_s), metadata=self.metadata)
            except grpc.RpcError as error:
                wait_s = backoff_s * random.uniform(0.5, 1.5)  # noqa: S311 - jitter
                last_try = time.monotonic() + wait_s >= deadline_s
                if error.code() not in TRANSIENT or last_try:
                    raise StoreError(self._words(error)) from error
                self.recover(error)
                time.sleep(wait_s)
                backoff_s = min(2 * backoff_s, 0.5)

    def recover(self, error: grpc.RpcError) -> None:
        """After a transient error: a new token if the old one was refused (etcd forgets its
        tokens when it restarts)."""
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            try:
                self.authenticate()
            except grpc.RpcError:
                pass  # the caller tries again, and says so if time runs out

    def authenticate(self) -> None:
        """Get a token, if the connection has a user."""
        if self._user is None:
            return
        name, password = self._user
        with self._auth_lock:
            request = rpc.AuthenticateRequest(name=name, password=password)
            reply = self._auth.Authenticate(request, timeout=self.timeout_s)
            self.metadata = (("token", reply.token),)

    def close(self) -> None:
        self._client.close()

    def _words(self, error: grpc.RpcError) -> str:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            detail = f"no answer within {self.timeout_s:g} s"
        else:
            detail = " ".join((error.details() or str(error.code().value[1])).split())[:200]
        return f"etcd at {self.address}: {detail}"


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all keys that start with ``prefix``; NUL means no end (etcd API)."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b"\0"
