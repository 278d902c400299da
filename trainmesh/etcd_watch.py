"""A watch that survives its server: every change once, in order, whatever happens between."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from typing import Any

import grpc

from trainmesh.etcd_rpc import TRANSIENT, Connection, prefix_end, rpc
from trainmesh.store import Change, WatchCallback

__all__ = ["EtcdWatch"]

MAX_BACKOFF_S = 1.0


class EtcdWatch:
    """One gRPC stream, opened again at the next revision whenever it breaks."""

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
        self._thread = threading.Thread(target=self._run, name="etcd-watch", daemon=True)
        self._thread.start()
        # A watch "from now on" begins when the server has said so, not when it was asked for.
        self._ready.wait(connection.timeout_s)

    def close(self) -> None:
        self._stopping.set()
        if self._call is not None:
            self._call.cancel()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=2 * self._connection.timeout_s)

    def _run(self) -> None:
        backoff_s = 0.05
        while not self._stopping.is_set():
            request_open = threading.Event()
            try:
                self._call = self._connection.watches.Watch(
                    self._requests(request_open),
                    metadata=self._connection.metadata,
                    wait_for_ready=True,
                )
                for reply in self._call:
                    backoff_s = 0.05
                    if self._stopping.is_set() or not self._take(reply):
                        break
            except grpc.RpcError as error:
                if self._stopping.is_set():
                    return
                if error.code() not in TRANSIENT:
                    print(f"watch ended: {error.details()}", file=sys.stderr, flush=True)
                    return
                self._connection.recover(error)
            finally:
                request_open.set()
            self._stopping.wait(backoff_s * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    def _requests(self, done: threading.Event) -> Iterator[Any]:
        create = rpc.WatchCreateRequest(
            key=self._prefix,
            range_end=prefix_end(self._prefix),
            start_revision=self._next_revision,
            progress_notify=True,
        )
        yield rpc.WatchRequest(create_request=create)
        done.wait()  # the stream lives as long as its request side is open

    def _take(self, reply: Any) -> bool:
        """Handle one reply; False if the stream must be opened again."""
        if reply.compact_revision:
            self._next_revision = reply.compact_revision + 1
            self._callback([Change("", None, reply.compact_revision, resync=True)])
            return False
        if reply.canceled:
            return False
        if reply.created:
            # Only a watch from now on takes its resume point from here: one that resumes would
            # skip the events between.
            if not self._next_revision:
                self._next_revision = reply.header.revision + 1
            self._ready.set()
        elif reply.events:
            self._callback([_change(event) for event in reply.events])
            self._next_revision = reply.events[-1].kv.mod_revision + 1
        else:
            self._next_revision = max(self._next_revision, reply.header.revision + 1)
        return True


def _change(event: Any) -> Change:
    deleted = event.type != 0
    return Change(event.kv.key.decode(), None if deleted else event.kv.value, event.kv.mod_revision)
