"""A lease that is renewed until it is closed or has expired; no error ends the renewal early."""

from __future__ import annotations

import threading
import time

from trainmesh.errors import LeaseLost, StoreError
from trainmesh.store.rpc import Connection, RpcError, rpc

__all__ = ["EtcdLease"]


class EtcdLease:
    """Granted on construction (etcd raises a short time to live) and renewed every third of it.

    A ``shared`` one is not revoked on ``close``, and others may renew it too: with its ``number``
    it is not granted but joined.

    Raises:
        LeaseLost: the lease to join has expired.
        StoreError: etcd does not answer.
    """

    def __init__(
        self, connection: Connection, ttl_s: int, *, shared: bool = False, number: int = 0
    ) -> None:
        self._connection = connection
        self._shared = shared
        asked_s = time.monotonic()
        if number:
            self.number: int = number
            left_s = self._ask(connection.timeout_s)
            if not left_s:
                raise LeaseLost(f"etcd at {connection.address}: the lease has expired")
            self._ttl_s = float(left_s)
        else:
            reply = connection.call(connection.leases.LeaseGrant, rpc.LeaseGrantRequest(TTL=ttl_s))
            self.number = reply.ID
            self._ttl_s = float(reply.TTL)
        self._lost = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(
            target=self._keep, args=(asked_s + self._ttl_s,), name="etcd-lease", daemon=True
        )
        self._thread.start()

    @property
    def lost(self) -> bool:
        return self._lost.is_set()

    def close(self) -> None:
        if self._closing.is_set():
            return
        self._closing.set()
        self._thread.join(timeout=2 * self._connection.timeout_s)
        if self._shared:
            return
        try:
            request = rpc.LeaseRevokeRequest(ID=self.number)
            self._connection.call(self._connection.leases.LeaseRevoke, request)
        except StoreError:
            pass  # it has expired, or will by itself

    def _keep(self, expires_s: float) -> None:
        """Renew until ``close``, or until a whole time to live has gone by without success.

        The time counts from when a renewal was asked for, not from its answer, so that the
        owner does not go on believing after the server has given up.
        """
        wait_s = self._ttl_s / 3
        while not self._closing.wait(wait_s):
            asked_s = time.monotonic()
            left_s = self._ask(expires_s - asked_s)
            if left_s is not None:
                expires_s = asked_s + left_s
            if time.monotonic() >= expires_s:
                self._lost.set()
                return
            pause_s = self._ttl_s / 3 if left_s is not None else self._ttl_s / 10
            wait_s = min(pause_s, max(0.0, expires_s - time.monotonic()))

    def _ask(self, timeout_s: float) -> int | None:
        """The renewed time to live; 0 if the lease is gone, None if the server can't be asked."""
        connection = self._connection
        timeout_s = min(connection.timeout_s, max(0.05, timeout_s))
        try:
            replies = connection.leases.LeaseKeepAlive(
                iter([rpc.LeaseKeepAliveRequest(ID=self.number)]),
                timeout=timeout_s,
                metadata=connection.metadata,
            )
            return max((int(reply.TTL) for reply in replies), default=None)
        except RpcError as error:
            connection.recover(error, timeout_s)
            return None
