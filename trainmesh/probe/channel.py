"""One connection between two agents: the handshake, the frames, and bounded reads and writes.

The listener sends ``MAGIC`` and 32 random bytes, the other side answers with the HMAC-SHA256 of
them under the request's token. Then come frames, an operation (1 byte) and a size (8 bytes):

ECHO  0      the listener answers with one byte
PUSH  n      n bytes of payload follow; the listener answers with one byte when all are there
PULL  n      the listener answers with n bytes of payload

So a PUSH or PULL of n bytes takes one round trip more than the payload needs, in either
direction.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from enum import IntEnum
from functools import cache
from typing import TypeVar

__all__ = ["Channel", "ProbeOp", "ask", "prove", "serve"]

MAGIC = b"TMP1"
NONCE_BYTES = 32
"""Of 256 bits, like the proof: nobody meets one twice."""
PROOF_BYTES = 32
"""HMAC-SHA256."""
FRAME = struct.Struct("!BQ")
ACK = b"\x06"
CHUNK_BYTES = 256 * 1024
"""Read and written at a time: the cost of a call no longer counts, and it fits into a cache."""
POLL_S = 0.2
"""How soon a wait notices that it has been cancelled."""
CLOSED = "the other agent closed the connection"
Argument = TypeVar("Argument")
Result = TypeVar("Result")


class ProbeOp(IntEnum):
    ECHO = 0
    PUSH = 1
    PULL = 2


class Channel:
    """A connected TCP socket on which no wait is longer than until ``deadline_s`` (monotonic),
    or much longer than until ``cancel`` is set. It owns the socket.

    All methods raise OSError: TimeoutError at the deadline, ConnectionError if the peer or
    ``cancel`` ended it.
    """

    def __init__(
        self, connection: socket.socket, deadline_s: float, cancel: threading.Event
    ) -> None:
        self.deadline_s = deadline_s
        self._socket = connection
        self._cancel = cancel
        connection.settimeout(POLL_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self._bounded(self._socket.send, left) :]

    def receive(self, nbytes: int) -> bytes:
        """Exactly ``nbytes``, which must be few."""
        data = b""
        while len(data) < nbytes:
            got = self._bounded(self._socket.recv, nbytes - len(data))
            if not got:
                raise ConnectionResetError(CLOSED)
            data += got
        return data

    def send_payload(self, nbytes: int) -> None:
        payload, left = _payload(), nbytes
        while left:
            left -= self._bounded(self._socket.send, payload[:left])

    def receive_payload(self, nbytes: int) -> None:
        room, left = memoryview(bytearray(min(nbytes, CHUNK_BYTES))), nbytes
        while left:
            got = self._bounded(self._socket.recv_into, room[:left])
            if not got:
                raise ConnectionResetError(CLOSED)
            left -= got

    def _bounded(self, attempt: Callable[[Argument], Result], argument: Argument) -> Result:
        while True:
            if self._cancel.is_set():
                raise ConnectionAbortedError("the probe was ended")
            if time.monotonic() >= self.deadline_s:
                raise TimeoutError("its time was up")
            try:
                return attempt(argument)
            except TimeoutError:
                continue


def prove(channel: Channel, token: str) -> None:
    """The connecting side's half of the handshake, until a first answer shows that it counts.

    Raises:
        OSError: nothing that speaks this protocol listens there, or it refuses the token.
    """
    greeting = channel.receive(len(MAGIC) + NONCE_BYTES)
    if not greeting.startswith(MAGIC):
        raise ConnectionRefusedError("something else than an agent listens there")
    channel.send(_proof(token, greeting.removeprefix(MAGIC)))
    ask(channel, ProbeOp.ECHO)


def ask(channel: Channel, op: ProbeOp, nbytes: int = 0) -> float:
    """One exchange; the seconds it took."""
    begin_s = time.perf_counter()
    channel.send(FRAME.pack(op, nbytes))
    if op is ProbeOp.PUSH:
        channel.send_payload(nbytes)
    if op is ProbeOp.PULL:
        channel.receive_payload(nbytes)
    else:
        channel.receive(len(ACK))
    return time.perf_counter() - begin_s


def serve(channel: Channel, token: str, *, nbytes: int, deadline_s: float) -> None:
    """The listening side: checks the proof, then answers frames until ``deadline_s``.

    Args:
        nbytes: Payload that the peer may exchange, both directions together.

    Raises:
        OSError: the peer left (the usual end), gave a wrong proof or asked for too much.
    """
    nonce = secrets.token_bytes(NONCE_BYTES)
    channel.send(MAGIC + nonce)
    if not hmac.compare_digest(channel.receive(PROOF_BYTES), _proof(token, nonce)):
        raise ConnectionRefusedError("a wrong proof of the token")
    channel.deadline_s = deadline_s
    left = nbytes
    while True:
        op, size = FRAME.unpack(channel.receive(FRAME.size))
        left -= size
        if left < 0:
            raise ConnectionRefusedError("a request for more bytes than are allowed")
        if op == ProbeOp.PUSH:
            channel.receive_payload(size)
        if op == ProbeOp.PULL:
            channel.send_payload(size)
        elif op in (ProbeOp.ECHO, ProbeOp.PUSH):
            channel.send(ACK)
        else:
            raise ConnectionRefusedError(f"an unknown operation {op}")


def _proof(token: str, nonce: bytes) -> bytes:
    return hmac.digest(token.encode(), nonce, "sha256")


@cache
def _payload() -> memoryview:
    """Random bytes, so that no tunnel can compress them."""
    return memoryview(os.urandom(CHUNK_BYTES))
