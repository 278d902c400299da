"""Typed values to bytes and back: the only place where bytes from outside become objects.

Values are canonical JSON (sorted keys, no spaces), so equal values have equal bytes and a
digest means something. Decoding checks size before it parses and types while it parses
(``msgspec``); nothing is ever unpickled or evaluated.
"""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar

import msgspec

from trainmesh.errors import WireError
from trainmesh.types import NOT_SENT, Hint

__all__ = ["MAX_BYTES", "decode", "encode", "hint_digest"]

MAX_BYTES = 256 * 1024
"""Largest value accepted from a store, socket or control file (etcd refuses 1.5 MiB)."""

T = TypeVar("T")

_encoder = msgspec.json.Encoder(order="sorted")


def encode(value: Any) -> bytes:
    """Canonical JSON of a struct from ``trainmesh.types`` (or of plain built-ins).

    JSON is UTF-8. Bytes of a file name that are not UTF-8 (surrogates in Python's str) become
    backslashes and digits.
    """
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:
        return _encoder.encode(_in_utf8(msgspec.to_builtins(value)))


def _in_utf8(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_in_utf8(key): _in_utf8(item) for key, item in value.items()}
    return [_in_utf8(item) for item in value] if isinstance(value, list) else value


def decode(data: bytes, kind: type[T], *, what: str, max_bytes: int = MAX_BYTES) -> T:
    """Decode ``data`` as ``kind``.

    Raises:
        WireError: too large, not JSON, or not a valid ``kind``; the message begins with ``what``.
    """
    if len(data) > max_bytes:
        raise WireError(f"{what}: {len(data)} bytes, more than the {max_bytes} allowed")
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError as error:
        raise WireError(f"{what}: nested too deeply") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"{what}: {str(error).splitlines()[0]}") from error


def hint_digest(hint: Hint) -> int:
    """Digest of everything in a hint that ranks must agree on before they act on it: all but what
    ``NOT_SENT`` names.

    Returns:
        A number of 63 bits, so that it and its negative are 64-bit integers.
    """
    fields = _sent(msgspec.to_builtins(hint))
    fields["plan"] = _sent(fields["plan"])
    return int.from_bytes(hashlib.sha256(encode(fields)).digest()[:8], "big") >> 1


def _sent(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in NOT_SENT}
