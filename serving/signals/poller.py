"""Repeats the same work for every endpoint, each at its own pace, with a limit on the total
rate."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable

from trainmesh.serving.config.types import EndpointConfig

__all__ = ["Poller", "surface"]

AT_ONCE = 32
MAX_PER_S = 200
"""Of all endpoints together: with more than this many a second, each gets its turn less often."""
JITTER = 0.1


class Poller:
    """``work`` gets an endpoint and says after how many seconds, counted from its start, it is that
    endpoint's turn again. It must not raise, and must end by itself in bounded time. Endpoints with
    equal URLs count as one."""

    def __init__(self, work: Callable[[EndpointConfig], Awaitable[float]]) -> None:
        self._work = work
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._endpoints: dict[str, EndpointConfig] = {}
        self._authenticator = asyncio.Semaphore(AT_ONCE)

    def update(self, endpoints: Iterable[EndpointConfig]) -> set[str]:
        """Work for ``endpoints`` from now on and for no others.

        Returns:
            The URLs that it no longer works for, or has a new configuration of.
        """
        wanted: dict[str, EndpointConfig] = {}
        for endpoint in endpoints:
            wanted.setdefault(endpoint.url, endpoint)
        gone = {url for url, old in self._endpoints.items() if wanted.get(url) != old}
        for url in gone:
            self._tasks.pop(url).cancel()
        self._endpoints = wanted
        for url, endpoint in wanted.items():
            if url not in self._tasks:
                self._tasks[url] = asyncio.create_task(self._repeat(endpoint))
                self._tasks[url].add_done_callback(surface)
        return gone

    async def close(self) -> None:
        """End all work."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        self._endpoints.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _repeat(self, endpoint: EndpointConfig) -> None:
        loop = asyncio.get_running_loop()
        while True:
            async with self._authenticator:
                started_s = loop.time()
                wait_s = await self._work(endpoint)
            wait_s = max(wait_s, len(self._tasks) / MAX_PER_S)
            wait_s *= random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - jitter
            await asyncio.sleep(max(0.0, started_s + wait_s - loop.time()))


def surface(task: asyncio.Task[None]) -> None:
    """A done-callback for tasks that should never end: their bug reaches the loop's exception
    handler at once, not when somebody collects the task."""
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error
