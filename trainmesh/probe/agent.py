"""The agent's part in measured probes: it obeys the job's probe request while there is one."""

from __future__ import annotations

import threading
import time

from trainmesh.console import note
from trainmesh.errors import ConfigError, StoreError, WireError
from trainmesh.probe.interface import job_address, machine_id
from trainmesh.probe.pair import measure_ceiling, measure_pair
from trainmesh.probe.responder import Responder
from trainmesh.probe_types import ProbeAnswer, ProbeListener, ProbePair, ProbeRequest, measured_key
from trainmesh.store.base import Lease, Store, job_prefix
from trainmesh.wire import decode, encode

__all__ = ["Prober"]

LEASE_TTL_S = 10
"""A node that doesn't renew for this long is gone; a pause of the machine may be a few seconds."""


class Prober:
    """One thread that does what the newest request says, from construction to ``close``.

    Args:
        node: This agent's node.
        etcd: URL of the job's etcd, which tells whether the job spans machines.
        store: The agent's store.
        lease: The agent's lease; measures live as long.
        job: The job's name.
    """

    def __init__(self, node: str, etcd: str, store: Store, lease: Lease, job: str) -> None:
        self._node = node
        self._etcd = etcd
        self._store = store
        self._lease = lease
        self._job = job
        self._prefix = job_prefix(job)
        self._news = threading.Condition()
        self._wanted: ProbeRequest | None = None
        self._unread = False
        self._closing = False
        self._cancel = threading.Event()
        self._open: _Open | None = None
        self._thread = threading.Thread(target=self._run, name="probe")
        self._thread.start()

    def see(self, value: bytes | None) -> None:
        """The request's key has changed; a newer request ends what an older one began."""
        request = None
        if value is not None:
            try:
                request = decode(value, ProbeRequest, what="probe request")
            except WireError as error:
                _say(str(error))
        with self._news:
            self._wanted = request
            self._tell()

    def close(self) -> None:
        """End whatever runs; bounded."""
        with self._news:
            self._closing = True
            self._tell()
        self._thread.join()

    def _tell(self) -> None:
        self._unread = True
        self._cancel.set()
        self._news.notify()

    def _run(self) -> None:
        while not self._closing:
            request = self._next()
            try:
                self._follow(request)
            except StoreError as error:
                _say(str(error))
        self._shut()

    def _next(self) -> ProbeRequest | None:
        """The next request; None if there is none any more, or its time is up."""
        left_s = self._open.close_s - time.monotonic() if self._open is not None else None
        with self._news:
            self._news.wait_for(lambda: self._unread, timeout=left_s)
            request = self._wanted if self._unread and not self._closing else None
            self._unread = False
            self._cancel = threading.Event()
            return request

    def _follow(self, request: ProbeRequest | None) -> None:
        if self._open is not None and (request is None or request.id != self._open.id):
            self._shut()
        if request is None:
            return
        if self._open is None:
            self._open = _Open(request, self._store, self._etcd, self._cancel)
            listener = self._open.listener
            key = f"{self._prefix}probe/ready/{self._node}"
            self._store.put(key, encode(listener), self._open.lease)
        for pair in request.pairs:
            if pair.src == self._node and self._open.responder is not None:
                self._measure(request, pair, self._open)

    def _measure(self, request: ProbeRequest, pair: ProbePair, opened: _Open) -> None:
        measure = measure_pair(request, pair, opened.listener.host, self._cancel)
        if measure.forward is not None or measure.backward is not None:
            key = measured_key(self._job, pair.src, pair.dst)
            self._store.put(key, encode(measure), self._lease)
        answer = ProbeAnswer(id=request.id, turn=request.turn, measure=measure)
        key = f"{self._prefix}probe/answers/{self._node}"
        self._store.put(key, encode(answer), opened.lease)

    def _shut(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


class _Open:
    """What exists while a request does: a listener, and a lease for what is written about it."""

    def __init__(
        self, request: ProbeRequest, store: Store, etcd: str, cancel: threading.Event
    ) -> None:
        self.id = request.id
        self.close_s = time.monotonic() + request.open_s
        self.lease = store.lease(LEASE_TTL_S)
        self.responder: Responder | None = None
        name = host = problem = ""
        port, ceiling = 0, 0.0
        try:
            name, host = job_address(etcd, request.backend)
            self.responder = Responder(host, request)
            port = self.responder.port
            if request.nbytes:
                ceiling = measure_ceiling(request, host, port, cancel)
        except ConfigError as error:
            problem = str(error)
        self.listener = ProbeListener(
            id=request.id,
            machine=machine_id(),
            interface=name,
            host=host,
            port=port,
            ceiling_bytes_per_s=ceiling,
            problem=problem,
        )

    def close(self) -> None:
        if self.responder is not None:
            self.responder.close()
        self.lease.close()


def _say(text: str) -> None:
    note(f"probe: {text}")
