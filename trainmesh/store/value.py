"""Values as etcd keeps them: larger ones deflated, which shrinks a status or a report by a factor
of 5 to 10, and with it etcd's memory, where the last 6 000 writes stay whatever is compacted."""

from __future__ import annotations

import zlib

__all__ = ["packed", "unpacked"]

LEAST_BYTES = 2_048
"""Smaller values stay as they are, to be read by anybody."""
MARK = b"\x00deflate\x00"
"""What a packed value begins with; no JSON does."""
MOST_BYTES = 16 * 2**20
"""A value that claims to be larger is not ours."""
LEVEL = 1
"""zlib's quickest: JSON repeats itself so much that more effort gains little."""


def packed(value: bytes) -> bytes:
    """``value``, or something shorter from which ``unpacked`` makes it."""
    if len(value) < LEAST_BYTES:
        return value
    shorter = MARK + zlib.compress(value, LEVEL)
    return shorter if len(shorter) < len(value) else value


def unpacked(stored: bytes) -> bytes:
    """The value that was stored; ``stored`` itself where that is not something packed."""
    if not stored.startswith(MARK):
        return stored
    inflating = zlib.decompressobj()
    try:
        value = inflating.decompress(stored[len(MARK) :], MOST_BYTES)
    except zlib.error:
        return stored
    return value if inflating.eof else stored
