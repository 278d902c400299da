"""Numbers for people: seconds, bytes and rates with three significant digits."""

from __future__ import annotations

__all__ = ["count", "duration", "percent", "rate", "size"]


def count(number: int, word: str) -> str:
    """``1 rank`` or ``4 ranks``."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """``1.25 s``, ``12.5 ms`` or ``80.0 us``."""
    if not seconds:
        return "0 s"
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{_three(seconds / scale)} {unit}"
    return f"{_three(seconds / 1e-6)} us"


def size(nbytes: float) -> str:
    """``4.20 MB``; SI units, 1 MB = 1e6 bytes."""
    return _scaled(nbytes, "B")


def rate(bytes_per_s: float) -> str:
    """``1.25 GB/s``; SI units."""
    return _scaled(bytes_per_s, "B/s")


def percent(share: float) -> str:
    """``12.3 %``."""
    return f"{100 * share:.1f} %"


def _scaled(value: float, unit: str) -> str:
    for prefix, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{_three(value / scale)} {prefix}{unit}"
    return f"{value:.0f} {unit}"


def _three(value: float) -> str:
    """Three significant digits, without an exponent."""
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}"
