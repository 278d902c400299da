"""The store on etcd v3, through the ``etcd3`` client.

``python -m trainmesh.etcd URL`` checks that an etcd answers there; the launcher calls it so that
gRPC stays out of the process that starts the training processes.
"""

from __future__ import annotations

import ipaddress
import sys
import time
from typing import Any
from urllib.parse import urlsplit

from trainmesh.errors import ConfigError, FencedOut, StoreError, TrainmeshError
from trainmesh.etcd_lease import EtcdLease
from trainmesh.etcd_rpc import Connection, prefix_end, rpc
from trainmesh.etcd_watch import EtcdWatch
from trainmesh.store import Entry, Lease, Watch, WatchCallback

__all__ = ["EtcdStore", "check", "connect", "parse_url"]

DEFAULT_PORT = 2379


def parse_url(url: str, *, insecure: bool = False) -> tuple[str, int, bool]:
    """Host, port and whether TLS is wanted.

    Raises:
        ConfigError: not ``http(s)://host[:port]``; or plain http to another machine without
            ``insecure``.
    """
    expected = f"etcd URL {url!r} must be http://host:port or https://host:port"
    try:
        parts = urlsplit(url)
        port = parts.port or DEFAULT_PORT
    except ValueError as error:
        raise ConfigError(f"{expected}: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(expected)
    if parts.username or parts.password:
        raise ConfigError("an etcd URL must not hold a password; it would show in process lists")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ConfigError(f"{expected}, without a path")
    if parts.scheme == "http" and not insecure and not _is_loopback(parts.hostname):
        raise ConfigError(
            f"etcd at {parts.hostname} would be reached in plain text; use https://, or pass "
            "--insecure-etcd if the network is yours alone"
        )
    return parts.hostname, port, parts.scheme == "https"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def connect(
    url: str,
    *,
    timeout_s: float = 2.0,
    insecure: bool = False,
    ca_cert: str | None = None,
    cert: str | None = None,
    key: str | None = None,
    user: str | None = None,
    password: str | None = None,
) -> EtcdStore:
    """A store on the etcd at ``url``; every call takes at most ``timeout_s``.

    Raises:
        ConfigError: a bad URL, or https without ``ca_cert``.
        StoreError: the user is refused, or certificates can't be read.
    """
    host, port, with_tls = parse_url(url, insecure=insecure)
    if with_tls and ca_cert is None:
        raise ConfigError(f"etcd URL {url!r} needs a CA certificate; set TRAINMESH_ETCD_CA")
    tls = (ca_cert, cert, key) if with_tls and ca_cert is not None else None
    credentials = (user, password) if user is not None and password is not None else None
    connection = Connection(host, port, timeout_s=timeout_s, tls=tls, user=credentials)
    if credentials is not None:
        connection.call(lambda _, **__: connection.authenticate(), None)
    return EtcdStore(connection)


def check(store: EtcdStore) -> None:
    """Raise StoreError unless an etcd v3 answers; the message says what to do."""
    try:
        store.get("/trainmesh/check")
    except StoreError as error:
        raise StoreError(
            f"{error}; start etcd 3.4 or newer there, or leave --etcd out to run one here"
        ) from error


class EtcdStore:
    """``trainmesh.store.Store`` on one etcd."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, key: str) -> Entry | None:
        reply = self._kv("Range", rpc.RangeRequest(key=key.encode()))
        return _entry(reply.kvs[0]) if reply.kvs else None

    def list(self, prefix: str) -> tuple[list[Entry], int]:
        start = prefix.encode()
        reply = self._kv("Range", rpc.RangeRequest(key=start, range_end=prefix_end(start)))
        return [_entry(kv) for kv in reply.kvs], reply.header.revision

    def put(self, key: str, value: bytes, lease: Lease | None = None) -> int:
        number = lease.number if isinstance(lease, EtcdLease) else 0
        request = rpc.PutRequest(key=key.encode(), value=value, lease=number)
        revision: int = self._kv("Put", request).header.revision
        return revision

    def cas(
        self, key: str, value: bytes, *, expected_revision: int, fence: Entry | None = None
    ) -> int | None:
        compare = [_mod_revision_is(key, expected_revision)]
        if fence is not None:
            compare.append(_create_revision_is(fence.key, fence.create_revision))
        put = rpc.RequestOp(request_put=rpc.PutRequest(key=key.encode(), value=value))
        reply = self._kv("Txn", rpc.TxnRequest(compare=compare, success=[put]))
        if reply.succeeded:
            revision: int = reply.header.revision
            return revision
        if fence is not None:
            held = self.get(fence.key)
            if held is None or held.create_revision != fence.create_revision:
                raise FencedOut(f"{key}: another coordinator leads now")
        return None

    def delete(self, prefix: str) -> int:
        start = prefix.encode()
        request = rpc.DeleteRangeRequest(key=start, range_end=prefix_end(start))
        deleted: int = self._kv("DeleteRange", request).deleted
        return deleted

    def watch(self, prefix: str, callback: WatchCallback, *, start_revision: int = 0) -> Watch:
        return EtcdWatch(self._connection, prefix, callback, start_revision)

    def lease(self, ttl_s: int) -> Lease:
        return EtcdLease(self._connection, ttl_s)

    def elect(self, prefix: str, value: bytes, lease: Lease, *, timeout_s: float) -> Entry | None:
        """etcd's election recipe: who holds the oldest key under ``prefix`` leads."""
        if not isinstance(lease, EtcdLease):
            raise TypeError("elect needs a lease of this store")
        key = f"{prefix}{lease.number:x}"
        self._join_election(key, value, lease)
        deadline_s = time.monotonic() + timeout_s
        while True:
            candidates, _ = self.list(prefix)
            oldest = min(candidates, key=lambda entry: entry.create_revision, default=None)
            if oldest is not None and oldest.key == key:
                return oldest
            if time.monotonic() >= deadline_s:
                return None
            time.sleep(min(0.1, timeout_s))

    def close(self) -> None:
        self._connection.close()

    def _join_election(self, key: str, value: bytes, lease: EtcdLease) -> None:
        put = rpc.PutRequest(key=key.encode(), value=value, lease=lease.number)
        absent = _create_revision_is(key, 0)
        request = rpc.TxnRequest(compare=[absent], success=[rpc.RequestOp(request_put=put)])
        self._kv("Txn", request)

    def _kv(self, method: str, request: Any) -> Any:
        return self._connection.call(getattr(self._connection.kv, method), request)


def _entry(kv: Any) -> Entry:
    return Entry(kv.key.decode(), kv.value, kv.create_revision, kv.mod_revision)


def _mod_revision_is(key: str, revision: int) -> Any:
    return rpc.Compare(
        key=key.encode(), result=rpc.Compare.EQUAL, target=rpc.Compare.MOD, mod_revision=revision
    )


def _create_revision_is(key: str, revision: int) -> Any:
    return rpc.Compare(
        key=key.encode(),
        result=rpc.Compare.EQUAL,
        target=rpc.Compare.CREATE,
        create_revision=revision,
    )


def main() -> int:
    """``python -m trainmesh.etcd URL [--insecure]``: exit 0 if an etcd answers."""
    url, *flags = sys.argv[1:]
    try:
        store = connect(url, insecure="--insecure" in flags)
        try:
            check(store)
        finally:
            store.close()
    except TrainmeshError as error:
        print(f"trainmesh: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
