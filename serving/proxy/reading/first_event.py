"""Errors that come under status 200, as the first event of a stream or instead of the document.

Engines that fail at once have often sent their head already. To a client that has been told
nothing yet this is the error answer that it should have been, and another endpoint can be asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, cast

import msgspec

__all__ = ["GOOD", "error_of", "status_of"]

GOOD: Final = b""
MAX_BYTES: Final = 65_536
"""An error is shorter."""
_NAMES_BYTES: Final = 24
"""Of an object's beginning, in which its first name stands."""
_OTHER: Final = b"." * _NAMES_BYTES
"""Stands for a beginning that is no error."""
_SUSPECT: Final = re.compile(rb'\{\s*"(?:error"\s*:|(?:object|type)"\s*:\s*"error")')
_SKIPPED: Final = (b"event:", b"id:", b"retry:")
_CLIENTS_FAULT: Final = frozenset(
    ("invalid_request_error", "BadRequestError", "bad_request_error", "validation")
)


def error_of(body: bytes, *, events: bool, complete: bool) -> bytes | None:
    """The JSON of the error that ``body`` begins with; ``GOOD`` if it is none, and None while that
    can't be said yet.

    Args:
        body: the beginning of an answer under status 200.
        events: it is a stream of events, else a document.
        complete: nothing follows.
    """
    if len(body) > MAX_BYTES:
        return GOOD
    payload = _first_data(body) if events else body
    if payload is None:
        return GOOD if complete else None
    payload = payload.lstrip(b" \t\r\n" if not events else b" ")
    line, end, _ = payload.partition(b"\n")
    if _SUSPECT.match(payload) is None:
        decided = complete or len(payload) >= _NAMES_BYTES or (events and bool(end))
        return GOOD if decided else None
    if not complete and not (events and end):
        return None
    text = line.rstrip(b"\r") if events else payload
    return text if _error(text) is not None else GOOD


def _first_data(body: bytes) -> bytes | None:
    """What follows the first ``data:``, or stands in llama.cpp's ``error:``; ``_OTHER`` where the
    stream begins with something else, such as a comment; None while that can't be said yet."""
    start = 0
    while True:
        end = body.find(b"\n", start)
        line = body[start:end] if end >= 0 else body[start:]
        if line.startswith(b"data:"):
            return body[start + 5 :] or None
        if line.startswith(b"error:"):
            return b'{"error":%s}\n' % line[6:].rstrip(b"\r") if end >= 0 else None
        skipped = not line.rstrip(b"\r") or line.startswith(_SKIPPED)
        if end < 0:
            return None if skipped or len(line) < 6 else _OTHER
        if not skipped:
            return _OTHER
        start = end + 1


def _error(text: bytes) -> object | None:
    """The error in an object, whatever its form; None without one."""
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    if found.get("object") == "error" or (found.get("type") == "error" and not found.get("error")):
        return cast(object, found)
    return cast("object | None", found.get("error") or None)


def status_of(text: bytes) -> int:
    """The HTTP status that an error should have had: its code, else by its type, else 500."""
    error = _error(text)
    if not isinstance(error, dict):
        return 500
    fields = cast("Mapping[str, Any]", error)
    for name in ("code", "status_code", "status", "http_status_code"):
        value = fields.get(name)
        if isinstance(value, str) and value.isdigit() and len(value) == 3:
            value = int(value)
        if isinstance(value, int) and 400 <= value < 600:
            return value
    return 400 if fields.get("type") in _CLIENTS_FAULT else 500
