"""Streams of known events at a known pace, until standard input ends: paced_server.py PERIOD_S.

A request says in its body how many events it wants and under which name.
"""

import asyncio
import contextlib
import json
import sys
from typing import cast

import httptools
import uvloop

__all__ = ["body", "event"]

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def event(name: str, number: int) -> bytes:
    choice = {"index": 0, "delta": {"content": f"{name}-{number} "}, "finish_reason": None}
    return b"data: " + json.dumps({"id": name, "choices": [choice]}).encode() + b"\n\n"


def body(name: str, events: int) -> bytes:
    """What a client gets in the end."""
    return b"".join(event(name, number) for number in range(events)) + DONE


class Stream(asyncio.Protocol):
    running: "set[Stream]" = set()

    def __init__(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.asked = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.running.discard(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self.asked += data

    def on_message_complete(self) -> None:
        asked, self.asked = self.asked, b""
        if self.parser.get_method() != b"POST":
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            return
        wish = json.loads(asked)
        self.name, self.events, self.number = wish["user"], wish["max_tokens"], 0
        self.transport.write(HEAD)
        self.running.add(self)

    def step(self) -> None:
        data = event(self.name, self.number) if self.number < self.events else DONE
        self.number += 1
        end = b"0\r\n\r\n" if data is DONE else b""
        if end:
            self.running.discard(self)
        self.transport.write(b"%x\r\n%s\r\n%s" % (len(data), data, end))


async def main(period_s: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Stream, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    ended = asyncio.ensure_future(reader.read())
    while not ended.done():
        for stream in tuple(Stream.running):
            stream.step()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(ended), period_s)


if __name__ == "__main__":
    uvloop.run(main(float(sys.argv[1])))
