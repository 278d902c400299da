"""The store on etcd v3, through the ``etcd3`` client."""

from __future__ import annotations

import threading
import time
from typing import Any, TypeVar
from weakref import WeakSet

from trainmesh.errors import ConfigError, FencedOut, LeaseLost, StoreError
from trainmesh.store.address import is_loopback, parse_url
from trainmesh.store.base import Entry, Lease, Watch, WatchCallback
from trainmesh.store.lease import EtcdLease
from trainmesh.store.rpc import Connection, prefix_end, rpc
from trainmesh.store.value import packed, unpacked
from trainmesh.store.watch import EtcdWatch

__all__ = ["EtcdStore", "check", "connect"]

CAMPAIGN_POLL_S = 0.1
"""Between two looks whether the leader's key is free."""
CLOSED = "the store is closed"

Child = TypeVar("Child", EtcdWatch, EtcdLease)


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

    Without ``user`` nothing is sent yet: use ``check`` to find out whether etcd answers.

    Raises:
        ConfigError: a bad URL, https without ``ca_cert``, half a pair of certificate and key or
            of user and password, a certificate that can't be read, or a password that would go
            to another machine in plain text without ``insecure``.
        StoreError: the user is refused.
    """
    host, port, with_tls = parse_url(url)
    if with_tls and ca_cert is None:
        raise ConfigError(f"etcd URL {url!r} needs a CA certificate; set TRAINMESH_ETCD_CA")
    if (cert is None) != (key is None):
        raise ConfigError("TRAINMESH_ETCD_CERT and TRAINMESH_ETCD_KEY only work together")
    if (user is None) != (password is None):
        raise ConfigError("TRAINMESH_ETCD_USER and TRAINMESH_ETCD_PASSWORD only work together")
    if user is not None and not (with_tls or insecure or is_loopback(host)):
        raise ConfigError(
            f"the password for etcd at {host} would be sent in plain text; use https://, or pass "
            "--insecure-etcd if the network is yours alone"
        )
    tls = (ca_cert, cert, key) if with_tls and ca_cert is not None else None
    credentials = (user, password) if user is not None and password is not None else None
    connection = Connection(host, port, timeout_s=timeout_s, tls=tls, user=credentials)
    try:
        if credentials is not None:
            connection.log_in()
    except StoreError:
        connection.close()
        raise
    return EtcdStore(connection)


def check(store: EtcdStore, otherwise: str = "") -> None:
    """Raise StoreError unless an etcd v3 answers; the message says what to do, or ``otherwise``."""
    try:
        store.get("/trainmesh/check")
    except StoreError as error:
        raise type(error)(f"{error}; start etcd 3.4 or newer there{otherwise}") from error


class EtcdStore:
    """``trainmesh.store.base.Store`` on one etcd."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._closed = False
        self._open: WeakSet[EtcdWatch | EtcdLease] = WeakSet()
        self._required: tuple[str, bytes] | None = None
        self._lease_number = 0

    def require(self, key: str, value: bytes, lease: Lease) -> None:
        """From now on write only while ``key``, which lives by ``lease``, holds ``value``; else
        writes raise FencedOut. What is written without a lease of its own ends with this one."""
        self._required = key, value
        self._lease_number = _number(lease)

    def get(self, key: str) -> Entry | None:
        reply = self._kv("Range", rpc.RangeRequest(key=key.encode()))
        return _only(reply)

    def list(self, prefix: str) -> tuple[list[Entry], int]:
        start = prefix.encode()
        reply = self._kv("Range", rpc.RangeRequest(key=start, range_end=prefix_end(start)))
        return [_entry(kv) for kv in reply.kvs], reply.header.revision

    def put(self, key: str, value: bytes, lease: Lease | None = None) -> int:
        number = _number(lease) if lease is not None else self._lease_number
        request = rpc.RequestOp(request_put=_put(key, value, number))
        revision: int = self._write(request).header.revision
        return revision

    def create(self, key: str, value: bytes, lease: Lease, *, clear: str) -> bool:
        """Write ``key``, which must not exist, and delete all keys that start with ``clear`` in
        the same step; whether that was done."""
        start = clear.encode()
        range_ = rpc.DeleteRangeRequest(key=start, range_end=prefix_end(start))
        # As it is: others require the same bytes (``require``).
        put = rpc.PutRequest(key=key.encode(), value=value, lease=_number(lease))
        request = rpc.TxnRequest(
            compare=[_create_revision_is(key, 0)],
            success=[
                rpc.RequestOp(request_delete_range=range_),
                rpc.RequestOp(request_put=put),
            ],
            failure=[_range_op(key)],
        )
        reply = self._kv("Txn", request)
        if reply.succeeded:
            return True
        held = _only(reply.responses[0].response_range)
        return held is not None and held.value == value  # the answer of an earlier try was lost

    def remove(self, entry: Entry) -> bool:
        """Delete ``entry``'s key if nobody has changed it; whether that was done."""
        delete = rpc.DeleteRangeRequest(key=entry.key.encode())
        request = rpc.TxnRequest(
            compare=[_mod_revision_is(entry.key, entry.mod_revision)],
            success=[rpc.RequestOp(request_delete_range=delete)],
        )
        return bool(self._kv("Txn", request).succeeded)

    def cas(
        self, key: str, value: bytes, *, expected_revision: int, fence: Entry | None = None
    ) -> int | None:
        compare = [_mod_revision_is(key, expected_revision)]
        now = [_range_op(key)]
        if fence is not None:
            compare.append(_create_revision_is(fence.key, fence.create_revision))
            now.append(_range_op(fence.key))
        if self._required is not None:
            compare.append(_value_is(*self._required))
            now.append(_range_op(self._required[0]))
        put = rpc.RequestOp(request_put=_put(key, value, self._lease_number))
        tries = 0

        def send(request: Any, **options: Any) -> Any:
            nonlocal tries
            tries += 1
            return self._connection.kv.Txn(request, **options)

        reply = self._connection.call(
            send, rpc.TxnRequest(compare=compare, success=[put], failure=now)
        )
        if reply.succeeded:
            revision: int = reply.header.revision
            return revision
        held, *fences = (_only(response.response_range) for response in reply.responses)
        # An earlier try may have been carried out although its answer was lost.
        if tries > 1 and held is not None and held.value == value:
            return held.mod_revision
        self._check_required(fences[-1] if fences else None)
        if fence is not None and (
            fences[0] is None or fences[0].create_revision != fence.create_revision
        ):
            raise FencedOut(f"{key}: another coordinator leads now")
        return None

    def delete(self, prefix: str) -> int:
        start = prefix.encode()
        request = rpc.DeleteRangeRequest(key=start, range_end=prefix_end(start))
        reply = self._write(rpc.RequestOp(request_delete_range=request))
        deleted: int = reply.responses[0].response_delete_range.deleted
        return deleted

    def watch(self, prefix: str, callback: WatchCallback, *, start_revision: int = 0) -> Watch:
        self._require_open()
        return self._owned(EtcdWatch(self._connection, prefix, callback, start_revision))

    def lease(self, ttl_s: int) -> Lease:
        self._require_open()
        return self._owned(EtcdLease(self._connection, ttl_s))

    def shared_lease(self, ttl_s: int, number: int = 0) -> EtcdLease:
        """A lease that outlives its ``close``, for others to renew too; one of theirs, ``number``,
        if that is given."""
        self._require_open()
        return self._owned(EtcdLease(self._connection, ttl_s, shared=True, number=number))

    def elect(self, prefix: str, value: bytes, lease: Lease, *, timeout_s: float) -> Entry | None:
        """etcd's election recipe: who holds the oldest key under ``prefix`` leads."""
        key = f"{prefix}{_number(lease):x}"
        self._join_election(key, value, _number(lease))
        deadline_s = time.monotonic() + timeout_s
        while True:
            candidates, _ = self.list(prefix)
            if all(entry.key != key for entry in candidates):
                raise LeaseLost(f"{prefix}: the lease expired during the election")
            oldest = min(candidates, key=lambda entry: entry.create_revision)
            if oldest.key == key:
                return oldest
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return None
            time.sleep(min(CAMPAIGN_POLL_S, left_s))

    def close(self) -> None:
        """End every watch, revoke every lease, close the channel; may be called twice."""
        with self._lock:
            self._closed = True
            still_open = list(self._open)
        for child in still_open:
            child.close()
        self._connection.close()

    def _require_open(self) -> None:
        with self._lock:
            if self._closed:
                raise StoreError(CLOSED)

    def _owned(self, child: Child) -> Child:
        with self._lock:
            if not self._closed:
                self._open.add(child)
                return child
        child.close()
        raise StoreError(CLOSED)

    def _join_election(self, key: str, value: bytes, lease_number: int) -> None:
        put = rpc.PutRequest(key=key.encode(), value=value, lease=lease_number)
        self._write(rpc.RequestOp(request_put=put), _create_revision_is(key, 0))

    def _write(self, operation: Any, *conditions: Any) -> Any:
        """Carry out ``operation`` while what is required holds, and if ``conditions`` do."""
        compare = [*conditions]
        now = []
        if self._required is not None:
            compare.append(_value_is(*self._required))
            now.append(_range_op(self._required[0]))
        request = rpc.TxnRequest(compare=compare, success=[operation], failure=now)
        reply = self._kv("Txn", request)
        if not reply.succeeded and now:
            self._check_required(_only(reply.responses[0].response_range))
        return reply

    def _check_required(self, held: Entry | None) -> None:
        if self._required is None:
            return
        key, value = self._required
        if held is None or held.value != value:
            raise FencedOut(f"{key}: the claim on the job's name has expired or is another's")

    def _kv(self, method: str, request: Any) -> Any:
        return self._connection.call(getattr(self._connection.kv, method), request)


def _number(lease: Lease) -> int:
    if not isinstance(lease, EtcdLease):
        raise TypeError(f"a lease of etcd is needed here, not {type(lease).__name__}")
    return lease.number


def _put(key: str, value: bytes, lease_number: int) -> Any:
    return rpc.PutRequest(key=key.encode(), value=packed(value), lease=lease_number)


def _entry(kv: Any) -> Entry:
    key = kv.key.decode(errors="backslashreplace")
    return Entry(key, unpacked(kv.value), kv.create_revision, kv.mod_revision)


def _only(reply: Any) -> Entry | None:
    return _entry(reply.kvs[0]) if reply.kvs else None


def _range_op(key: str) -> Any:
    return rpc.RequestOp(request_range=rpc.RangeRequest(key=key.encode()))


def _mod_revision_is(key: str, revision: int) -> Any:
    return rpc.Compare(
        key=key.encode(), result=rpc.Compare.EQUAL, target=rpc.Compare.MOD, mod_revision=revision
    )


def _value_is(key: str, value: bytes) -> Any:
    return rpc.Compare(
        key=key.encode(), result=rpc.Compare.EQUAL, target=rpc.Compare.VALUE, value=value
    )


def _create_revision_is(key: str, revision: int) -> Any:
    return rpc.Compare(
        key=key.encode(),
        result=rpc.Compare.EQUAL,
        target=rpc.Compare.CREATE,
        create_revision=revision,
    )
