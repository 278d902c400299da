"""Bytes that arrive in any pieces, made into whole documents, events and characters."""

from __future__ import annotations

import codecs
import json
import re
from typing import Any, TypeVar

import msgspec

from trainmesh.serving.adapters.types import AdapterError

__all__ = [
    "MAX_DOCUMENT_BYTES",
    "MAX_EVENT_BYTES",
    "WholeBody",
    "EventReader",
    "StopCutter",
    "Utf8Joiner",
    "clean",
    "decode_answer",
]

MAX_DOCUMENT_BYTES = 64 << 20
MAX_EVENT_BYTES = 4 << 20

T = TypeVar("T")

_LONE_HALF = re.compile("[\ud800-\udc7f\udd00-\udfff]")


def decode_answer(data: bytes, kind: type[T]) -> T:
    """An endpoint's JSON as ``kind``.

    Triton writes the bytes of a string tensor into JSON as they are, so a character may be cut at
    its end. Such bytes become lone surrogates (``surrogateescape``), which ``Utf8Joiner`` puts
    together again.

    Raises:
        AdapterError: not JSON, or not a ``kind``.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise AdapterError(
            f"the endpoint's answer is not what its protocol says: {error}"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        value: Any = json.loads(data.decode("utf-8", "surrogateescape"))
        return msgspec.convert(value, kind)
    except RecursionError:
        what = "nested too deeply"
    except (ValueError, msgspec.MsgspecError) as error:
        what = str(error).splitlines()[0]
    raise AdapterError(f"the endpoint's answer is not valid JSON: {what}")


def clean(said: object) -> str:
    """What an endpoint said, fit for a message: valid, on one line, not too long."""
    text = " ".join(str(said)[:500].split())
    return _LONE_HALF.sub("\ufffd", text).encode("utf-8", "replace").decode()


class WholeBody:
    """A body that is only of use when it is complete."""

    def __init__(self, max_bytes: int = MAX_DOCUMENT_BYTES) -> None:
        self._parts: list[bytes] = []
        self._room = max_bytes
        self._max_bytes = max_bytes

    def add(self, data: bytes) -> None:
        """Raises: AdapterError: more than ``max_bytes``."""
        self._room -= len(data)
        if self._room < 0:
            raise AdapterError(f"the endpoint's answer is larger than {self._max_bytes} bytes")
        self._parts.append(data)

    def take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        return data


class EventReader:
    """The data of server-sent events (WHATWG HTML 9.2); other fields and comments are skipped.

    A lone CR is not taken as an end of line: no inference server sends one, and it would need a
    look at the next piece. An event without the empty line after it is incomplete and not given.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self._searched = 0
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of each event that ``piece`` completes.

        Raises:
            AdapterError: an event is larger than ``MAX_EVENT_BYTES``.
        """
        self._rest += piece
        events: list[bytes] = []
        start = 0
        while (end := self._rest.find(b"\n", max(start, self._searched))) >= 0:
            self._line(bytes(self._rest[start:end]).removesuffix(b"\r"), events)
            start = end + 1
        del self._rest[:start]
        self._searched = len(self._rest)
        if len(self._rest) + self._size > MAX_EVENT_BYTES:
            raise AdapterError(f"the endpoint sent an event larger than {MAX_EVENT_BYTES} bytes")
        return events

    def _line(self, line: bytes, events: list[bytes]) -> None:
        if line.startswith(b"data:"):
            value = line[5:].removeprefix(b" ")
            self._data.append(value)
            self._size += len(value)
        elif not line and self._data:
            events.append(b"\n".join(self._data))
            self._data = []
            self._size = 0


class Utf8Joiner:
    """Text whose characters may be cut between two pieces. What never becomes UTF-8 is U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = False

    def feed(self, data: bytes) -> str:
        text = self._decoder.decode(data)
        self._pending = bool(self._decoder.getstate()[0])
        return text

    def feed_text(self, text: str) -> str:
        """``text`` from ``decode_answer``: bytes that weren't UTF-8 are lone surrogates in it."""
        if not self._pending and text.isascii():
            return text
        return self.feed(_raw(text))

    def end(self) -> str:
        self._pending = False
        return self._decoder.decode(b"", final=True)


def _raw(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a pair, written as an escape: no byte stands for it
        return _LONE_HALF.sub("\ufffd", text).encode("utf-8", "surrogateescape")


class StopCutter:
    """Ends a text before the first of ``stops``, whether or not the engine knows about them.

    Of stops that overlap the one that is complete first counts, as it does for an engine, so the
    text does not depend on the pieces it came in. The end of a piece that may be the beginning of
    a stop is held back until more is known.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        if self.stopped or not self._stops:
            return "" if self.stopped else text
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)[1]]
        keep = self._beginning(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        held, self._held = self._held, ""
        return held

    def _beginning(self, text: str) -> int:
        """How many characters at the end of ``text`` a stop may begin with."""
        for count in range(min(self._longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-count:]) for stop in self._stops):
                return count
        return 0
