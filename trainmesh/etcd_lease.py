"""A lease that is renewed until it is closed or has expired; no error ends the renewal early."""

from __future__ import annotations

import threading
import time

import grpc

from trainmesh.errors import StoreError
from trainmesh.etcd_rpc import Connection, rpc

__all__ = ["EtcdLease"]


class EtcdLease:
    """Granted on construction (etcd gives 2 s at least) and renewed every third of its time."""

    def __init__(self, connection: Connection, ttl_s: int) -> None:
        self._connection = connection
        reply = connection.call(connection.leases.LeaseGrant, rpc.LeaseGrantRequest(TTL=ttl_s))
        self.number: int = reply.ID
        self._ttl_s = float(reply.TTL)
        self._lost = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="etcd-lease", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        return self._lost.is_set()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(timeout=2 * self._connection.timeout_s)
        if not self.lost:
            try:
                request = rpc.LeaseRevokeRequest(ID=self.number)
                self._connection.call(self._connection.leases.LeaseRevoke, request)
            except StoreError:
                pass  # it expires by itself

    def _renew(self) -> None:
        renewed_s = time.monotonic()
        wait_s = self._ttl_s / 3
        while not self._closing.wait(wait_s):
            asked_s = time.monotonic()
            left_s = self._ask()
            if left_s == 0:
                self._lost.set()
                return
            if left_s is not None:
                renewed_s = asked_s
            elif time.monotonic() - renewed_s > self._ttl_s:
                self._lost.set()
                return
            wait_s = self._ttl_s / 3 if left_s is not None else min(0.5, self._ttl_s / 10)

    def _ask(self) -> int | None:
        """The lease's time left; 0 if it is gone, None if the server can't be asked."""
        connection = self._connection
        try:
            replies = connection.leases.LeaseKeepAlive(
                iter([rpc.LeaseKeepAliveRequest(ID=self.number)]),
                timeout=connection.timeout_s,
                metadata=connection.metadata,
            )
            return max((int(reply.TTL) for reply in replies), default=None)
        except grpc.RpcError as error:
            connection.recover(error)
            return None
