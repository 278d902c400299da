"""Many streams at once: every byte arrives, memory stays flat."""

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import httptools
import pytest

from tests.needs import need_open_files
from tests.serving.abuse.paced_server import body
from tests.serving.running import RunningRouter, running_router, until

SERVER = Path(__file__).parent / "paced_server.py"
GROWTH_BYTES = 20 << 20
EVENTS = 20


@contextmanager
def paced_server(period_s: float) -> Iterator[int]:
    with subprocess.Popen(
        [sys.executable, str(SERVER), str(period_s)],
        cwd=SERVER.parents[3],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.communicate("", timeout=10)


class Viewer(asyncio.Protocol):
    """Watches one stream."""

    def __init__(self, name: str, events: int) -> None:
        self.name, self.events = name, events
        self.body = bytearray()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        wish = {"model": "m", "stream": True, "user": self.name, "max_tokens": self.events}
        data = json.dumps(wish).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        transport.write(head.encode() + data)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.done.set_result(None)
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError(f"{self.name} ended after {self.body!r}"))


async def view(port: int, name: str) -> None:
    loop = asyncio.get_running_loop()
    _, viewer = await loop.create_connection(lambda: Viewer(name, EVENTS), "127.0.0.1", port)
    await viewer.done
    assert bytes(viewer.body) == body(name, EVENTS)


async def watch(router: RunningRouter, streams: int, seconds: float) -> list[int]:
    """That many streams at a time; the memory of the workers meanwhile."""
    ends_s = time.monotonic() + seconds
    memory: list[int] = []

    async def viewer(number: int) -> None:
        turn = 0
        while time.monotonic() < ends_s:
            await view(router.port, f"v{number}-{turn}")
            turn += 1

    async def sample() -> None:
        while time.monotonic() < ends_s:
            memory.append(await asyncio.to_thread(router.rss_bytes))
            await asyncio.sleep(seconds / 50)

    async with asyncio.TaskGroup() as group:
        group.create_task(sample())
        for number in range(streams):
            group.create_task(viewer(number))
    return memory


@pytest.mark.parametrize(
    ("streams", "seconds", "period_s"),
    [
        (200, 4, 0.1),
        pytest.param(1000, 300, 0.25, marks=[pytest.mark.soak, pytest.mark.timeout(420)]),
    ],
)
def test_streams_are_whole_and_memory_is_flat(
    streams: int, seconds: float, period_s: float
) -> None:
    need_open_files(2 * streams + 200)  # the router has two for each stream
    with paced_server(period_s) as port:
        endpoint = {"url": f"http://127.0.0.1:{port}", "max_inflight": 2 * streams}
        with running_router({"models": {"m": {"endpoints": [endpoint]}}}) as router:
            memory = asyncio.run(watch(router, streams, seconds))
            assert "Traceback" not in router.log
    quarter = len(memory) // 4
    early = statistics.median(memory[quarter : 2 * quarter])
    late = statistics.median(memory[-quarter:])
    assert early > 10 << 20, "no worker was found"
    assert late - early < GROWTH_BYTES, [f"{each >> 20} MiB" for each in memory]


def test_large_bodies_are_forgotten_once_they_are_answered() -> None:
    """Also by connections to the endpoint that stay open."""
    wish = {"model": "m", "user": "large", "max_tokens": 1, "pad": "x" * (1 << 20)}
    large = json.dumps(wish).encode()
    small = json.dumps({**wish, "pad": ""}).encode()

    def ask(data: bytes) -> None:
        with ThreadPoolExecutor(100) as pool:
            statuses = list(pool.map(lambda _: router.post(data)[0], range(100)))
        assert set(statuses) == {200}

    with paced_server(0.05) as port:
        endpoint = {"url": f"http://127.0.0.1:{port}"}
        with running_router({"models": {"m": {"endpoints": [endpoint]}}}) as router:
            ask(small)
            before = router.rss_bytes()
            for _ in range(4):  # a heap that keeps them does so in one of three rounds
                ask(large)
                until(lambda: router.rss_bytes() - before < GROWTH_BYTES)
