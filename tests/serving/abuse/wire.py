"""Both ends of a connection without a network: what is written is kept, in order."""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, cast

from trainmesh.serving.config.types import Config, EndpointConfig, LimitsConfig, ModelConfig
from trainmesh.serving.decide.endpoint import Attempt
from trainmesh.serving.decide.types import (
    AttemptOutcome,
)
from trainmesh.serving.proxy.client.connection import ClientConnection
from trainmesh.serving.proxy.reading.call import Call, HeldBodies
from trainmesh.serving.proxy.upstream.answer import Client, UpstreamRequest
from trainmesh.serving.proxy.upstream.connection import Upstream
from trainmesh.serving.refusal import Refusal

if TYPE_CHECKING:
    from trainmesh.serving.proxy.router import Router
    from trainmesh.serving.proxy.upstream.server import Server

__all__ = ["Caller", "Front", "Recorder", "answered", "asked", "cuts", "every_cut"]


class Recorder(asyncio.Transport):
    """A transport to nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.ended = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.ended:
            self.written += bytes(data)

    def get_extra_info(self, name: str, default: object = None) -> ssl.SSLObject | None:
        return None

    def is_closing(self) -> bool:
        return self.ended

    def close(self) -> None:
        self.ended = True

    def abort(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Caller:
    """Stands where an exchange and its connection pool stand: it keeps what an answer became."""

    closed = False

    def __init__(self) -> None:
        self.client = Recorder()
        self.events: list[str] = []
        self.heads: list[tuple[int, bytes, bytes]] = []
        self.chunked = False

    def on_head(self, upstream: Upstream) -> bool:
        return True

    def on_first(self, upstream: Upstream, now_s: float) -> Client:
        answer = upstream.answer
        self.heads.append((answer.status, answer.reason, answer.head()))
        bounded = answer.content_length is not None or answer.status in (204, 304)
        upstream.rechunk = not (answer.chunked or bounded or upstream.request.decode)
        self.chunked = upstream.rechunk or (answer.chunked and not upstream.request.decode)
        return self.client

    def on_first_byte(self, upstream: Upstream, now_s: float) -> None:
        self.events.append("first byte")

    def on_done(self, upstream: Upstream, now_s: float) -> None:
        self.events.append("done")

    def on_lost(self, upstream: Upstream, outcome: AttemptOutcome, now_s: float) -> None:
        self.events.append(outcome.value)

    def free(self, upstream: Upstream) -> None:
        self.events.append("free")

    def forget(self, upstream: Upstream) -> None: ...

    def observe_gap(self, gap_s: float) -> None: ...


class Loop:
    """An event loop that only has what was put off."""

    def __init__(self) -> None:
        self._soon: deque[Callable[[], None]] = deque()

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)

    def run(self) -> None:
        while self._soon:
            self._soon.popleft()()


class Front:
    """Stands where a worker's router stands: it answers each request at once."""

    draining = False

    def __init__(self, limits: LimitsConfig | None = None) -> None:
        model = ModelConfig(endpoints=(EndpointConfig(url="http://127.0.0.1:1"),))
        self.config = Config(version=1, models={"m": model}, limits=limits or LimitsConfig())
        self.loop = Loop()
        self.bodies = HeldBodies()
        self.connections: set[ClientConnection] = set()
        self.calls: list[tuple[bytes, bytes, tuple[tuple[bytes, bytes], ...], bytes]] = []
        self.refusals: list[int] = []

    def accepts(self, connection: ClientConnection) -> bool:
        return True

    def identify(self, call: Call, names: tuple[str, ...]) -> None:
        return None

    def open(self, connection: ClientConnection, call: Call) -> bytes:
        self.calls.append((call.method, call.target, tuple(call.passed_fields()), call.body))
        return b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"

    def own_fields(self, call: Call | None, endpoint: str = "") -> bytes:
        return b""

    def refused(self, call: Call | None, refusal: Refusal) -> None:
        self.refusals.append(refusal.status)

    @property
    def buffered_bytes(self) -> int:
        return self.bodies.nbytes


def asked(pieces: Iterable[bytes], limits: LimitsConfig | None = None) -> tuple[Front, Recorder]:
    """What one connection of a client makes of ``pieces``."""
    front, transport = Front(limits), Recorder()
    connection = ClientConnection(cast("Router", front))
    connection.connection_made(transport)
    for piece in pieces:
        if not transport.ended:
            connection.data_received(piece)
            front.loop.run()
    connection.connection_lost(None)
    return front, transport


def answered(pieces: Iterable[bytes], *, ends: bool, decode: bool = False) -> Caller:
    """What becomes of an answer that comes in ``pieces``, and then ends or not."""
    caller = Caller()
    upstream = Upstream(cast("Server", caller))
    upstream.connection_made(Recorder())
    request = UpstreamRequest(b"", b"", None, decode=decode)
    upstream.assign(caller, cast(Attempt, None), request)
    for piece in pieces:
        upstream.data_received(piece)
    if ends:
        upstream.eof_received()
        upstream.connection_lost(None)
    return caller


def cuts(data: bytes, *places: int) -> Iterator[bytes]:
    """``data`` in pieces that begin at ``places``."""
    ends = [*sorted(places), len(data)]
    start = 0
    for end in ends:
        if end > start:
            yield data[start:end]
            start = end


def every_cut(data: bytes) -> Iterator[list[bytes]]:
    """Whole, in two at every byte, and byte for byte."""
    for place in range(len(data)):
        yield list(cuts(data, place))
    yield [data[index : index + 1] for index in range(len(data))]
