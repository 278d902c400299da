"""A watch that survives its server: every change once, in order, whatever happens between."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator
from typing import Any

from trainmesh.console import note
from trainmesh.errors import StoreError
from trainmesh.store.base import Change, WatchCallback
from trainmesh.store.reasons import plain_reason
from trainmesh.store.rpc import Connection, RpcError, explain, jittered_s, prefix_end, rpc
from trainmesh.store.value import unpacked

__all__ = ["EtcdWatch"]

FIRST_BACKOFF_S = 0.05
"""As of requests (``trainmesh.store.rpc``)."""
MAX_BACKOFF_S = 1.0
"""A watch waits for as long as the store is away, so it may ask more seldom than a request."""


class EtcdWatch:
    """One gRPC stream, opened again at the next revision whenever it breaks, until ``close``.

    Raises:
        StoreError: etcd has not confirmed the first stream within the connection's time-out.
    """

    def __init__(
        self, connection: Connection, prefix: str, callback: WatchCallback, start_revision: int
    ) -> None:
        self._connection = connection
        self._prefix = prefix.encode()
        self._callback = callback
        self._next_revision = start_revision
        self._stopping = threading.Event()
        self._ready = threading.Event()
        self._call: Any = None
        self._trouble = f"no answer within {connection.timeout_s:g} s"
        self._thread = threading.Thread(target=self._run, name="etcd-watch", daemon=True)
        self._thread.start()
        # A watch "from now on" begins when the server has said so, not when it was asked for.
        if not self._ready.wait(connection.timeout_s):
            trouble = self._trouble
            self.close()
            raise StoreError(f"etcd at {connection.address}: no watch: {trouble}")

    def close(self) -> None:
        self._stopping.set()
        if self._call is not None:
            self._call.cancel()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=2 * self._connection.timeout_s)

    def _run(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while not self._stopping.is_set():
            if self._follow_stream():
                backoff_s = FIRST_BACKOFF_S
            self._stopping.wait(jittered_s(backoff_s))
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    def _follow_stream(self) -> bool:
        """Handle one stream's replies until it ends; True if it brought any."""
        connection = self._connection
        ended = threading.Event()
        useful = False
        try:
            self._call = connection.watches.Watch(
                self._requests(ended), metadata=connection.metadata, wait_for_ready=True
            )
            if self._stopping.is_set():  # close() may have cancelled the stream before this one
                self._call.cancel()
            for reply in self._call:
                if self._stopping.is_set() or not self._take(reply):
                    break
                useful = True
        except RpcError as error:
            self._trouble = explain(error, connection.timeout_s)
            connection.recover(error, connection.timeout_s)
        except ValueError:  # gRPC's answer to a stream on a closed channel: there is no way back
            self._trouble = "the connection is closed"
            self._stopping.set()
        finally:
            ended.set()
            if self._call is not None:
                self._call.cancel()
        return useful

    def _requests(self, ended: threading.Event) -> Iterator[Any]:
        create = rpc.WatchCreateRequest(
            key=self._prefix,
            range_end=prefix_end(self._prefix),
            start_revision=self._next_revision,
            progress_notify=True,
        )
        yield rpc.WatchRequest(create_request=create)
        ended.wait()  # the stream lives as long as its request side is open

    def _take(self, reply: Any) -> bool:
        """Handle one reply; False if the stream must be opened again."""
        if reply.compact_revision:
            self._next_revision = reply.compact_revision + 1
            self._tell([Change("", None, reply.compact_revision, resync=True)])
            return False
        if reply.canceled:
            # etcd says "permission denied" here when it only has forgotten our token.
            self._trouble = plain_reason(reply.cancel_reason)
            self._connection.renew_token(self._connection.timeout_s)
            return False
        if reply.created:
            # Only a watch from now on takes its resume point from here: one that resumes would
            # skip the events between.
            held = reply.header.revision + 1
            if not self._next_revision:
                self._next_revision = held
            elif self._next_revision > held:  # the store was emptied, or restored from a backup
                self._next_revision = held
                self._tell([Change("", None, held - 1, resync=True)])
                return False
            self._ready.set()
        elif reply.events:
            # A reply holds whole revisions, so the next one begins after its last.
            self._next_revision = reply.events[-1].kv.mod_revision + 1
            self._tell([_change(event) for event in reply.events])
        else:  # a progress notification: there is nothing for us up to this revision
            self._next_revision = max(self._next_revision, reply.header.revision + 1)
        return True

    def _tell(self, changes: list[Change]) -> None:
        try:
            self._callback(changes)
        except Exception:  # the receiver's bug must not end the watch, which nobody would notice
            note(traceback.format_exc())


def _change(event: Any) -> Change:
    deleted = event.type != 0
    key = event.kv.key.decode(errors="backslashreplace")
    return Change(key, None if deleted else unpacked(event.kv.value), event.kv.mod_revision)
