"""A recording TCP tap: it stands between the router and one server, and keeps every byte.

It slows, holds and cuts connections on demand, and it goes away with the server behind it, so to
the router it is that server.
"""

import asyncio
import re
import socket
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httptools

__all__ = ["Exchange", "LoopThread", "Tap", "close_server", "free_port", "loop_thread"]

Value = TypeVar("Value")


@dataclass
class Exchange:
    """One request as the router sent it, and what came back."""

    begun_s: float = field(default_factory=time.monotonic)
    method: str = ""
    path: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list, repr=False)
    request_body: bytes = field(default=b"", repr=False)
    sent: bool = False
    """The request was complete."""
    status: int = 0
    raw: bytes = field(default=b"", repr=False)
    """The answer as the server sent it, head and chunk framing included."""
    body: bytes = field(default=b"", repr=False)
    complete: bool = False
    cancelled: bool = False
    """The router closed the connection before the answer was complete."""

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key == name), "")


class LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="taps")
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Value], timeout_s: float = 30) -> Value:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    def stop(self) -> None:
        self.run(_end_tasks())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


async def _end_tasks() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0.01)  # aborted connections are closed by callbacks


async def close_server(server: asyncio.Server) -> None:
    """Close it, but not between the two steps in which it accepts: asyncio would lose the
    connection, which is then closed by nobody."""
    for listener in server.sockets:
        asyncio.get_running_loop().remove_reader(listener.fileno())
    await asyncio.sleep(0.01)
    server.close()


@contextmanager
def loop_thread() -> Iterator[LoopThread]:
    thread = LoopThread()
    try:
        yield thread
    finally:
        thread.stop()


class Tap:
    """Listens on a port of its own and forwards to ``upstream_port``; both on 127.0.0.1.

    ``piece_bytes`` and ``delay_s``: answers go on in pieces of that size, each after that delay,
    but those to a GET: a server that is slow at its work may well be quick to say that it lives.
    """

    def __init__(self, thread: LoopThread, upstream_port: int) -> None:
        self.exchanges: list[Exchange] = []
        self.errors: list[str] = []
        self.upstream_port = upstream_port
        self.piece_bytes = 65536
        self.delay_s = 0.0
        self.port = 0
        self._thread = thread
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.listen()

    def listen(self) -> None:
        self._thread.run(self._listen())

    def away(self) -> None:
        """Refuse connections from now on, and reset those there are."""
        self._thread.run(self._away())

    def forget(self) -> None:
        """What it has seen, and to be slow."""
        self.exchanges, self.errors = [], []
        self.piece_bytes, self.delay_s = 65536, 0.0

    def of(self, request_id: str, kind: str = "") -> list[Exchange]:
        """Those of the client's ``request_id``, which a router puts before its own id; ``kind``:
        what the router puts behind it, as for hedges."""
        name = re.compile(rf"{re.escape(request_id)}(-[0-9a-f]+)?{kind}")
        return [each for each in self.exchanges if name.fullmatch(each.header("x-request-id"))]

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _away(self) -> None:
        if self._server is not None:
            await close_server(self._server)
            self._server = None
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            server = await asyncio.open_connection("127.0.0.1", self.upstream_port)
            await self._pump(reader, writer, *server)
        except OSError:
            pass
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> None:
        """Until either side ends."""
        record = _Record(self)
        pumps = [
            asyncio.create_task(self._requests(reader, up_writer, record)),
            asyncio.create_task(self._answers(up_reader, writer, record)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            up_writer.transport.abort()
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: "_Record"
    ) -> None:
        try:
            while data := await reader.read(65536):
                record.request(data)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        record.router_left()

    async def _answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: "_Record"
    ) -> None:
        try:
            while data := await reader.read(self.piece_bytes):
                if self.delay_s and record.posted:
                    await asyncio.sleep(self.delay_s)
                record.answer(data)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass


class _Record:
    """Follows the messages on one connection. An answer that comes with no request, or a request
    before the last one was answered, goes to the tap's errors."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self._asked = httptools.HttpRequestParser(_Asked(self))
        self._answered = httptools.HttpResponseParser(_Answered(self))
        self.exchange: Exchange | None = None

    def begin(self) -> None:
        if self.exchange is not None:
            self._tap.errors.append(f"pipelined after {self.exchange.path}")
        self.exchange = Exchange()
        self._tap.exchanges.append(self.exchange)

    @property
    def posted(self) -> bool:
        return self.exchange is not None and self.exchange.method == "POST"

    def method(self) -> str:
        return self._asked.get_method().decode()

    def status(self) -> int:
        return self._answered.get_status_code()

    def request(self, data: bytes) -> None:
        try:
            self._asked.feed_data(data)
        except httptools.HttpParserError as problem:
            self._tap.errors.append(f"request {data[:200]!r}: {problem}")

    def answer(self, data: bytes) -> None:
        if self.exchange is None:
            self._tap.errors.append(f"answer without a request: {data[:200]!r}")
            return
        self.exchange.raw += data
        self._answered.feed_data(data)

    def router_left(self) -> None:
        if self.exchange is not None:
            self.exchange.cancelled = True


class _Asked:
    def __init__(self, record: _Record) -> None:
        self._record = record

    @property
    def _exchange(self) -> Exchange:
        assert self._record.exchange is not None
        return self._record.exchange

    def on_message_begin(self) -> None:
        self._record.begin()

    def on_url(self, url: bytes) -> None:
        self._exchange.path += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._exchange.headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        self._exchange.method = self._record.method()

    def on_body(self, body: bytes) -> None:
        self._exchange.request_body += body

    def on_message_complete(self) -> None:
        self._exchange.sent = True


class _Answered:
    def __init__(self, record: _Record) -> None:
        self._record = record

    def on_headers_complete(self) -> None:
        if self._record.exchange is not None:
            self._record.exchange.status = self._record.status()

    def on_body(self, body: bytes) -> None:
        if self._record.exchange is not None:
            self._record.exchange.body += body

    def on_message_complete(self) -> None:
        if self._record.exchange is not None and self._record.exchange.status >= 200:
            self._record.exchange.complete = True
            self._record.exchange = None


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
