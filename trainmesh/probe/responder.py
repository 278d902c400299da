"""The listening side of a measured probe: open only while a probe request is there."""

from __future__ import annotations

import socket
import threading
import time

from trainmesh.console import note
from trainmesh.errors import ConfigError
from trainmesh.probe.channel import Channel, serve
from trainmesh.probe_types import ProbeRequest

__all__ = ["Responder"]

MAX_CONNECTIONS = 8
"""At once: a schedule gives each node one pair at a time, and a stranger must not get more."""
HANDSHAKE_S = 2.0
"""Somebody who doesn't prove that it knows the job's token is let go after this."""
GRACE_S = 1.0
"""A peer's clock starts a little later than ours."""
ACCEPT_POLL_S = 0.1
"""How soon it notices that it has been closed."""


class Responder:
    """Listens on ``host`` until ``close``; answers those who prove that they know the request's
    token, within its limits of bytes and seconds a connection.

    Raises:
        ConfigError: ``host`` is no address of this machine.
    """

    def __init__(self, host: str, request: ProbeRequest) -> None:
        self._request = request
        self._closing = threading.Event()
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._serving: set[threading.Thread] = set()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, 0), family=family, backlog=MAX_CONNECTIONS)
        except OSError as error:
            raise ConfigError(f"can't listen on {host}: {error.strerror or error}") from error
        self._socket.settimeout(ACCEPT_POLL_S)
        self.port = int(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, name="probe-listener")
        self._thread.start()

    def close(self) -> None:
        """Stop listening and end every connection; bounded."""
        self._closing.set()
        self._thread.join()

    def _accept(self) -> None:
        with self._socket:
            while not self._closing.is_set():
                try:
                    connection, _ = self._socket.accept()
                except TimeoutError:
                    continue
                except OSError as error:  # out of file descriptors, or the peer has left again
                    note(f"probe: {error}")
                    self._closing.wait(ACCEPT_POLL_S)
                    continue
                self._begin(connection)
        for thread in self._serving:
            thread.join()

    def _begin(self, connection: socket.socket) -> None:
        self._serving = {thread for thread in self._serving if thread.is_alive()}
        if not self._free.acquire(blocking=False):
            connection.close()
            return
        thread = threading.Thread(target=self._serve, args=(connection,), name="probe-peer")
        self._serving.add(thread)
        thread.start()

    def _serve(self, connection: socket.socket) -> None:
        now_s = time.monotonic()
        channel = Channel(connection, now_s + HANDSHAKE_S, self._closing)
        try:
            serve(
                channel,
                self._request.token,
                nbytes=self._request.nbytes,
                deadline_s=now_s + self._request.seconds + GRACE_S,
            )
        except OSError:
            pass  # the peer has left, which is the usual end, or broke the rules
        finally:
            channel.close()
            self._free.release()
