"""One etcd connection: calls that end in time, are tried again while they may, re-authenticate.

The only module that imports gRPC and etcd3, so that what has to be done before is done once.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import trainmesh.store.protobuf_shim

trainmesh.store.protobuf_shim.prepare()

import etcd3  # noqa: E402
from etcd3 import etcdrpc as rpc  # noqa: E402
from grpc import RpcError, StatusCode  # noqa: E402

from trainmesh.errors import ConfigError, LeaseLost, StoreError, StoreFull, Unreachable  # noqa: E402
from trainmesh.store.reasons import is_away, plain_reason  # noqa: E402

__all__ = ["Connection", "RpcError", "explain", "jittered_s", "prefix_end", "rpc"]

TRANSIENT = (
    StatusCode.UNAVAILABLE,
    StatusCode.INTERNAL,
    StatusCode.UNKNOWN,
    StatusCode.CANCELLED,
    StatusCode.DEADLINE_EXCEEDED,
)
"""Codes after which the same call may succeed."""

AWAY = (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED)
"""Codes for which nobody may be there."""

OPTIONS = [
    # A server that is stopped or cut off is noticed after 13 s at most; etcd refuses pings that
    # come more often than every 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),  # 60 s unless set, whatever the keepalive time-out
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),  # also the time that one attempt to connect gets
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # closing one connection must not touch another
]

FIRST_BACKOFF_S = 0.05
"""A server that restarts is back within a second: try often at first."""
MAX_BACKOFF_S = 0.5
"""A request has a limit of some seconds, within which it should be tried several times."""


class Connection:
    """A channel to one etcd, with everything that a call needs.

    ``tls`` holds paths: (CA certificate, own certificate, own key), or None for plain text.
    ``user`` is (name, password), or None for an etcd without authentication.
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
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.timeout_s = timeout_s
        self.metadata: Any = None
        self._user = user
        self._auth_lock = threading.Lock()
        self._closed = threading.Event()
        ca_cert, cert, key = tls or (None, None, None)
        try:
            self._client = etcd3.client(
                host=self.address.rpartition(":")[0],
                port=port,
                timeout=timeout_s,
                ca_cert=ca_cert,
                cert_cert=cert,
                cert_key=key,
                grpc_options=OPTIONS,
            )
        except OSError as error:
            raise ConfigError(f"etcd certificate {error.filename}: {error.strerror}") from error
        channel = self._client.channel
        self.kv = rpc.KVStub(channel)
        self.leases = rpc.LeaseStub(channel)
        self.watches = rpc.WatchStub(channel)
        self._auth = rpc.AuthStub(channel)

    def call(self, method: Callable[..., Any], request: Any) -> Any:
        """The reply to ``request``; it may be sent more than once.

        Raises:
            StoreError: no answer within the time-out, or a refusal.
            LeaseLost: the request names a lease that has expired.
        """
        deadline_s = time.monotonic() + self.timeout_s
        backoff_s = FIRST_BACKOFF_S
        while True:
            try:
                return method(request, timeout=_left_s(deadline_s), metadata=self.metadata)
            except RpcError as error:
                wait_s = jittered_s(backoff_s)
                may_retry = error.code() in TRANSIENT or self.recover(error, _left_s(deadline_s))
                last_try = time.monotonic() + wait_s >= deadline_s
                if not may_retry or last_try or self._closed.wait(wait_s):
                    raise self._store_error(error) from error
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
            except ValueError as error:  # gRPC's answer to a call on a closed channel
                raise StoreError(f"etcd at {self.address}: the connection is closed") from error

    def recover(self, error: RpcError, timeout_s: float) -> bool:
        """True if etcd refused our token and there is a new one now: etcd forgets its tokens
        when it restarts, and when users or roles change."""
        refused = error.code() is StatusCode.UNAUTHENTICATED or (
            "auth store is old" in (error.details() or "")
        )
        return refused and self.renew_token(timeout_s)

    def renew_token(self, timeout_s: float) -> bool:
        """Try to get a new token; False if the connection has no user, or it is refused."""
        if self._user is None:
            return False
        try:
            self.authenticate(timeout_s)
        except RpcError as error:
            return error.code() in TRANSIENT
        return True

    def authenticate(self, timeout_s: float) -> None:
        """Get a token, if the connection has a user.

        Raises:
            RpcError: no answer, or the user or password is wrong.
        """
        if self._user is None:
            return
        name, password = self._user
        request = rpc.AuthenticateRequest(name=name, password=password)
        with self._auth_lock:
            reply = self._auth.Authenticate(request, timeout=timeout_s)
            self.metadata = (("token", reply.token),)

    def log_in(self) -> None:
        """The first ``authenticate``, with a call's time-out and errors."""
        self.call(lambda request, *, timeout, metadata: self.authenticate(timeout), None)

    def close(self) -> None:
        """Close the channel; calls that still run end with StoreError."""
        self._closed.set()
        self._client.close()

    def _store_error(self, error: RpcError) -> StoreError:
        details = error.details() or ""
        if "lease not found" in details:
            return LeaseLost(f"etcd at {self.address}: the lease has expired")
        kind: type[StoreError] = StoreError
        if error.code() in AWAY and is_away(details):
            kind = Unreachable
        elif "database space exceeded" in details:  # etcd's word for its alarm NOSPACE
            kind = StoreFull
        return kind(f"etcd at {self.address}: {explain(error, self.timeout_s)}")


def explain(error: RpcError, timeout_s: float) -> str:
    """What went wrong in one line, in plain words where gRPC's and etcd's need a decoder."""
    details = " ".join((error.details() or str(error.code().value[1])).split())
    if error.code() is StatusCode.UNIMPLEMENTED or "parsing HTTP/2" in details:
        return "what answers there is not etcd v3 (or it wants https instead of http)"
    if error.code() is StatusCode.DEADLINE_EXCEEDED or "SETTINGS frame" in details:
        return f"no answer within {timeout_s:g} s"
    return plain_reason(details)


def _left_s(deadline_s: float) -> float:
    return max(0.05, deadline_s - time.monotonic())


def jittered_s(backoff_s: float) -> float:
    """A wait of about ``backoff_s``, so that many clients don't come back at the same time."""
    return backoff_s * random.uniform(0.5, 1.5)  # noqa: S311 - no secret


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all keys that start with ``prefix``; NUL means no end (etcd API)."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b"\0"
