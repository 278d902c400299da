"""Send raw requests and see what comes back."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import httptools

from tests.serving.abuse.requests import Case

__all__ = ["Reply", "send", "send_all"]

QUIET_S = 0.5
"""How long nothing has to come for an answer to be the last one."""
LIMIT_S = 15.0


@dataclass(frozen=True)
class Reply:
    statuses: tuple[int, ...]
    closed: bool
    data: bytes

    @property
    def refused(self) -> bool:
        """No answer but errors (a proxy may also just close)."""
        return all(400 <= status < 600 for status in self.statuses)


class _Statuses:
    def __init__(self) -> None:
        self.seen: list[int] = []
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:
            self.seen.append(status)


async def send(port: int, case: Case) -> Reply:
    """The replies to one case; it waits until all are there and no more come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    statuses, data, closed = _Statuses(), b"", False
    with suppress(OSError):
        writer.write(case.raw)
        await writer.drain()
        if case.closes:
            writer.write_eof()
    try:
        async with asyncio.timeout(LIMIT_S):
            while not closed:
                enough = len(statuses.seen) >= case.answers
                piece = await _read(reader, QUIET_S if enough else LIMIT_S)
                if piece is None:
                    break
                closed = not piece
                data += piece
                with suppress(httptools.HttpParserError):
                    statuses.feed(piece)
    except TimeoutError:
        pass
    writer.transport.abort()
    return Reply(tuple(statuses.seen), closed, data)


async def _read(reader: asyncio.StreamReader, timeout_s: float) -> bytes | None:
    """Empty at the end of the connection, None when nothing comes."""
    try:
        async with asyncio.timeout(timeout_s):
            return await reader.read(65536)
    except TimeoutError:
        return None
    except OSError:
        return b""


async def send_all(port: int, cases: Iterable[Case]) -> dict[str, Reply]:
    """All cases, some at the same time."""
    slots = asyncio.Semaphore(32)

    async def one(case: Case) -> tuple[str, Reply]:
        async with slots:
            return case.name, await send(port, case)

    return dict(await asyncio.gather(*(one(case) for case in cases)))
