"""An endpoint that does what a test says, byte for byte, and remembers what it was asked."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.serving.tap import LoopThread, free_port, loop_thread

__all__ = ["Asked", "Backend", "answer", "backends", "chunked", "event", "stream"]


@dataclass
class Asked:
    """One request as it came."""

    head: bytes
    body: bytes
    left: bool = False
    """The router closed the connection before the answer was complete."""

    @property
    def lines(self) -> list[str]:
        return self.head.decode().split("\r\n")

    def header(self, name: str) -> str | None:
        for line in self.lines[1:]:
            key, _, value = line.partition(": ")
            if key.lower() == name:
                return value
        return None


Script = Callable[["Backend", asyncio.StreamWriter], Awaitable[None]]


def answer(
    body: bytes = b'{"object":"chat.completion"}', status: int = 200, more: str = ""
) -> bytes:
    head = f"HTTP/1.1 {status} Whatever\r\nContent-Type: application/json\r\n{more}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def event(number: int) -> bytes:
    data = json.dumps({"choices": [{"delta": {"content": f" t{number}"}}]})
    return f"data: {data}\n\n".encode()


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def stream(count: int) -> bytes:
    """The bytes of a whole stream."""
    events = b"".join(chunked(event(number)) for number in range(count))
    return STREAM_HEAD + events + chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n"


@dataclass
class Backend:
    """``script`` writes the answer; ``say`` is a script of its own for a fixed one."""

    port: int
    loop: LoopThread
    script: Script
    asked: list[Asked] = field(default_factory=list)
    health: int = 200
    models: bytes = b"{}"
    """What it answers to a GET, with the status ``health``."""
    got: list[Asked] = field(default_factory=list)
    """The last GETs."""
    connections: int = 0
    busy: int = 0
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.port}"

    def say(self, *pieces: bytes, pause_s: float = 0.0, then_close: bool = False) -> None:
        """Answer every request with these bytes, piece by piece."""

        async def script(_: Backend, writer: asyncio.StreamWriter) -> None:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                if pause_s:
                    await asyncio.sleep(pause_s)
            if then_close:
                writer.close()

        self.script = script

    def do(self, script: Script) -> None:
        self.script = script

    def start(self) -> None:
        self.loop.run(self._start())

    def stop(self) -> None:
        """As ``kill -9`` would: open connections are reset."""
        self.loop.run(self._stop())

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self.connections += 1
        try:
            while not writer.is_closing():
                await self._one(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).removesuffix(b"\r\n\r\n")
        asked = Asked(head, b"")
        asked.body = await reader.readexactly(int(asked.header("content-length") or 0))
        if not head.startswith(b"POST"):
            self.got = [*self.got[-9:], asked]
            writer.write(answer(self.models, self.health))
            return
        self.asked.append(asked)
        self.busy += 1
        try:
            await self._answer(asked, reader, writer)
        finally:
            self.busy -= 1

    async def _answer(
        self, asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        work = asyncio.ensure_future(self.script(self, writer))
        gone = asyncio.ensure_future(reader.read(1))
        await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            asked.left = True
            work.cancel()
            raise ConnectionResetError
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        work.result()


@contextmanager
def backends(count: int) -> Iterator[list[Backend]]:
    """Started ones, which answer with a small JSON document."""

    async def unset(_: Backend, writer: asyncio.StreamWriter) -> None:
        writer.write(answer())

    with loop_thread() as loop:
        made = [Backend(free_port(), loop, unset) for _ in range(count)]
        for backend in made:
            backend.start()
        try:
            yield made
        finally:
            for backend in made:
                backend.stop()
