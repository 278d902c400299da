"""Writes a worker's decisions: they are encoded at once and written by a thread, so nothing blocks.

``add`` appends to a buffer in memory. A full buffer, or ``tick``, hands it to a thread, so that a
slow disk never stops the event loop. Records that a full or slow disk doesn't take are dropped,
counted and reported by ``news``; serving goes on.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from queue import SimpleQueue

import msgspec

from trainmesh.errors import ConfigError
from trainmesh.serving.config.types import LedgerConfig
from trainmesh.serving.ledger.segments import Segment, segments

__all__ = ["LedgerWriter"]

BUFFER_BYTES = 256 * 1024
"""Written at once. The thread waits for the interpreter's lock after each write, up to 5 ms where
the event loop never rests, so small writes would fall behind."""
MAX_WAITING_BYTES = 32 << 20
"""What may wait for the disk."""
CLOSE_TIMEOUT_S = 5.0


class LedgerWriter:
    """The ledger of one worker. One thread of its own, ended by ``close``.

    ``records`` and ``dropped`` count since the start.

    Raises:
        ConfigError: the folder can't be made or written to.
    """

    def __init__(self, folder: Path, worker: int, config: LedgerConfig) -> None:
        self.records = 0
        self._encode_into = msgspec.json.Encoder().encode_into
        self._buffer = bytearray()
        self._buffered = 0
        self._refused = 0
        self._slow = ""
        self._said = ""
        self._full_bytes = min(BUFFER_BYTES, config.segment_bytes // 2)
        self._folder = folder
        self._file = _Segments(folder, worker, config)
        self._handed_bytes = 0
        self._done_bytes = 0  # written by the thread only
        self._queue: SimpleQueue[tuple[bytearray, int] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Records that were lost because the disk was full or slow."""
        return self._refused + self._file.lost

    def add(self, record: object) -> None:
        """Append a record (a msgspec Struct). It is on disk after the next ``tick``, or sooner."""
        buffer = self._buffer
        self._encode_into(record, buffer, -1)
        buffer.append(10)  # newline
        self.records += 1
        self._buffered += 1
        if len(buffer) >= self._full_bytes:
            self.tick()

    def tick(self) -> None:
        """Hand what is buffered to the thread. Call it about once a second."""
        if not self._buffered:
            return
        size = len(self._buffer)
        if self._handed_bytes - self._done_bytes + size > MAX_WAITING_BYTES:
            self._refused += self._buffered
            self._slow = "the disk can't keep up"
        else:
            self._slow = ""
            self._handed_bytes += size
            self._queue.put((self._buffer, self._buffered))
        self._buffer, self._buffered = bytearray(), 0

    def news(self) -> str:
        """Why records are lost, once; and once that they no longer are. "": nothing new."""
        problem = self._slow or self._file.problem
        before, self._said = self._said, problem
        if problem == before:
            return ""
        if problem:
            return f"{self._folder}: {problem}; records are lost"
        return f"{self._folder}: records are written again; {self.dropped} were lost"

    def close(self) -> None:
        """Write the rest and end the thread; gives up on a disk that hangs."""
        self.tick()
        self._queue.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            data, count = item
            self._file.write(data, count)
            self._done_bytes += len(data)
        self._file.close()


class _Segments:
    """The newest segment of a worker; begins the next one when it is full."""

    def __init__(self, folder: Path, worker: int, config: LedgerConfig) -> None:
        self.lost = 0
        self.problem = ""
        """Why the last lines could not be written; empty if they could."""
        self._folder = folder
        self._worker = worker
        self._config = config
        self._fd = -1
        self._size = 0
        self._torn = False
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._begin()
        except OSError as error:
            raise ConfigError(
                f"ledger.dir: can't write to {folder}: {error.strerror}; name a writable "
                "directory or set ledger.enabled to false"
            ) from error

    def write(self, data: bytearray, count: int) -> None:
        """Append whole lines; what can't be written is counted as lost."""
        if self._torn:
            # The end of the line that failed, so that it doesn't spoil the next one.
            data = bytearray(b"\n") + data
        view = memoryview(data)
        try:
            if self._size and self._size + len(data) > self._config.segment_bytes:
                self._begin()
            while view:
                written = os.write(self._fd, view)
                self._size += written
                view = view[written:]
            self._torn = False
            self.problem = ""
        except OSError as error:
            self.problem = error.strerror or str(error)
            self.lost += min(count, bytes(view).count(b"\n"))
            self._torn = self._torn or len(view) < len(data)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _begin(self) -> None:
        """Open the next segment and remove the oldest ones."""
        present = segments(self._folder, self._worker)
        number = present[-1].number + 1 if present else 0
        segment = Segment.at(self._folder, self._worker, number)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(segment.path, flags, 0o600)
        self.close()
        self._fd, self._size, self._torn = fd, 0, False
        surplus = len(present) + 1 - self._config.segments
        for old in present[: max(0, surplus)]:
            old.path.unlink(missing_ok=True)
