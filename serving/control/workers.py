"""The worker processes of a router: started, started again when one dies, and ended."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

from trainmesh.errors import TrainmeshError
from trainmesh.serving.control.worker_config import CUT_SHORT

__all__ = ["Workers"]

READY = b"ready\n"
READY_TIMEOUT_S = 30.0
FIRST_BACKOFF_S = 0.2
MAX_BACKOFF_S = 5.0
HEALTHY_AFTER_S = 10.0
KILL_AFTER_S = 5.0
"""Beyond what a worker may take to finish its requests."""


class Workers:
    """``start`` them, then ``close``. ``log`` is told of every one that dies."""

    def __init__(self, run: Path, count: int, log: Callable[[str], None]) -> None:
        self._run = run
        self._log = log
        self._closing = asyncio.Event()
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._count = count

    async def start(self) -> None:
        """Start all of them; returns when they accept connections.

        Raises:
            TrainmeshError: one ended at once; it has said why.
        """
        for index in range(self._count):
            await self._spawn(index)
        for index in range(self._count):
            self._tasks[index] = asyncio.create_task(self._keep(index))

    @property
    def alive(self) -> int:
        """How many run."""
        return sum(process.returncode is None for process in self._processes.values())

    async def close(self, drain_s: float) -> None:
        """Ask them to finish; kills what has not within ``drain_s`` and a little."""
        self._closing.set()
        for process in self._processes.values():
            if process.stdin is not None:
                process.stdin.close()
        running = [p.wait() for p in self._processes.values() if p.returncode is None]
        if running:
            try:
                async with asyncio.timeout(drain_s + KILL_AFTER_S):
                    await asyncio.gather(*running)
            except TimeoutError:
                self._log("workers did not finish in time and were killed")
                self.kill()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def cut_short(self) -> None:
        """Have those that are asked to finish wait for no answer any more; kills what has not
        ended a little later."""
        self._signal(CUT_SHORT)
        asyncio.get_running_loop().call_later(KILL_AFTER_S, self.kill)

    def kill(self) -> None:
        """End them now, whatever is on its way."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        for process in self._processes.values():
            if process.returncode is None:
                process.send_signal(number)

    async def _spawn(self, index: int) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "trainmesh.serving.proxy.worker", str(self._run), str(index),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us; they drain when we say so
        )  # fmt: skip
        self._processes[index] = process
        output = cast(asyncio.StreamReader, process.stdout)  # it is a pipe
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                line = await output.readline()
        except TimeoutError:
            line = b""
        if line != READY:
            if process.returncode is None:
                process.kill()
            code = await process.wait()
            raise TrainmeshError(f"worker {index} did not start (exit code {code}); see its line")

    async def _keep(self, index: int) -> None:
        loop = asyncio.get_running_loop()
        backoff_s = FIRST_BACKOFF_S
        while not self._closing.is_set():
            started_s = loop.time()
            code = await self._processes[index].wait()
            if self._closing.is_set():
                return
            self._log(f"worker {index} ended with exit code {code}; it is started again")
            if loop.time() - started_s > HEALTHY_AFTER_S:
                backoff_s = FIRST_BACKOFF_S
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
            try:
                await self._spawn(index)
            except TrainmeshError as error:
                self._log(str(error))
