"""Logs as JSON, one line per event, on standard error; rate-limited, and never blocking. On a
terminal, the same in words.

``log_event(logger, "endpoint_ejected", endpoint=..., reason=...)`` gives::

    {"time":"2026-11-21T17:00:00.123Z","level":"info","event":"endpoint_ejected","process":"worker-0","endpoint":...}

A thread writes the lines, so that a reader which stops reading blocks nobody; lines that don't fit
into its queue are dropped and counted. An event that comes more often than its burst allows is held
back, and its next line says how many were (``suppressed``).
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from trainmesh.console import clean

__all__ = ["ACCESS", "CONTROL", "LOGGER", "Logs", "log_event"]

LOGGER = logging.getLogger("trainmesh.serving")
ACCESS = logging.getLogger("trainmesh.serving.access")
"""One line per request, where ``telemetry.access_log`` asks for it; not rate-limited."""
CONTROL = logging.getLogger("trainmesh.serving.control")
"""Messages of the control process for an operator, in words; not rate-limited, because each comes
once."""
UNLIMITED = (ACCESS.name, CONTROL.name)

SOURCES = (LOGGER.name, "asyncio", "aiohttp", "opentelemetry")
"""Whose lines we write: ours and those of the libraries that a router runs on."""

QUEUE_LINES = 10_000
CLOSE_TIMEOUT_S = 2.0
BURST = 20
"""Lines of one event at once; later ones as fast as PER_S."""
PER_S = 1.0
MAX_EVENTS = 1000
"""Kinds of event whose rate is kept apart."""


def log_event(logger: logging.Logger, event: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log ``event`` with ``fields``, which must be what JSON can hold. Never log a secret."""
    if logger.isEnabledFor(level):
        logger.log(level, event, extra={"fields": fields})


class Logs:
    """Sets up logging of one process, ``name``: control or worker-<n>. End it with ``close``."""

    def __init__(self, name: str, fd: int = 2, level: int = logging.INFO) -> None:
        self._handler = _ThreadHandler(fd)
        self._handler.setFormatter(_Plain(name) if os.isatty(fd) else _Json(name))
        self._handler.addFilter(RateLimit())
        for logger in map(logging.getLogger, SOURCES):
            logger.addHandler(self._handler)
            logger.propagate = False
        LOGGER.setLevel(level)

    @property
    def dropped(self) -> int:
        """How many lines were lost because nobody reads fast enough, or at all."""
        return self._handler.dropped

    def close(self) -> None:
        """Write what is queued and end the thread; gives up on a reader that doesn't read."""
        for logger in map(logging.getLogger, SOURCES):
            logger.removeHandler(self._handler)
            logger.propagate = True
        self._handler.close()


class _ThreadHandler(logging.Handler):
    """Writes lines from a thread; a full queue drops them instead of waiting.

    The standard library's QueueListener can't be stopped while its queue is full or its stream
    blocks, hence this one.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.dropped = 0
        self._fd = fd
        self._queue: queue.SimpleQueue[logging.LogRecord | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        if self._queue.qsize() >= QUEUE_LINES:
            self.dropped += 1
        else:
            self._queue.put(record)

    def close(self) -> None:
        super().close()
        self._queue.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        while (record := self._queue.get()) is not None:
            line = memoryview(self.format(record).encode() + b"\n")
            try:
                while line:
                    # Not a stream: its lock would outlive a thread that is stuck in it.
                    line = line[os.write(self._fd, line) :]
            except OSError:
                self.dropped += 1


class RateLimit(logging.Filter):
    """A token bucket per event; errors and what is UNLIMITED always pass."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name in UNLIMITED or record.levelno >= logging.ERROR:
            return True
        bucket = self._buckets.get(record.msg)
        if bucket is None:
            if len(self._buckets) >= MAX_EVENTS:
                self._buckets.clear()
            bucket = self._buckets[record.msg] = _Bucket(self._clock())
        if not bucket.take(self._clock()):
            return False
        if bucket.suppressed:
            fields = getattr(record, "fields", {})
            record.fields = {**fields, "suppressed": bucket.suppressed}
            bucket.suppressed = 0
        return True


class _Bucket:
    __slots__ = ("at_s", "suppressed", "tokens")

    def __init__(self, now_s: float) -> None:
        self.tokens = float(BURST)
        self.at_s = now_s
        self.suppressed = 0

    def take(self, now_s: float) -> bool:
        self.tokens = min(float(BURST), self.tokens + (now_s - self.at_s) * PER_S)
        self.at_s = now_s
        if self.tokens < 1:
            self.suppressed += 1
            return False
        self.tokens -= 1
        return True


class _Plain(logging.Formatter):
    """For people at a terminal."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        if record.name == CONTROL.name:
            words = [str(value) for value in fields.values()]
        else:
            pairs = [f"{name}={value}" for name, value in fields.items() if value != ""]
            words = [f"{self._process}:", record.getMessage(), *pairs]
        text = clean(f"trainmesh serve: {' '.join(words)}")
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class _Json(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "process": self._process,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()
