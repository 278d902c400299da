"""Configs and real servers for the tests of what the control process watches."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import msgspec
from aiohttp import web

from trainmesh.serving.config.types import Config

DEADLINE_S = 20.0


def config(endpoints: Sequence[Mapping[str, object]], **more: object) -> Config:
    """Of one model ``m``."""
    fields = {"version": 1, "models": {"m": {"endpoints": endpoints}}, **more}
    return msgspec.convert(fields, Config)


class Server:
    """What an endpoint answers; may be changed at any time."""

    def __init__(self) -> None:
        self.port = 0
        self.answers: dict[str, tuple[int, str]] = {}
        self.asked: list[str] = []
        self.delay_s = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        await asyncio.sleep(self.delay_s)
        status, text = self.answers.get(request.path, (404, "no such page"))
        return web.Response(status=status, text=text)


@asynccontextmanager
async def serving(server: Server, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """``server`` listens on its port, or on a free one the first time."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", server.port, ssl_context=tls).start()
        server.port = runner.addresses[0][1]
        yield server
    finally:
        await runner.cleanup()


async def until(true: Callable[[], object], what: str) -> float:
    """Wait until ``true()`` is; returns how many seconds that took."""
    started_s = time.monotonic()
    while not true():
        if time.monotonic() - started_s > DEADLINE_S:
            raise AssertionError(f"never: {what}")
        await asyncio.sleep(0.01)
    return time.monotonic() - started_s
