"""Numbers for people: seconds, bytes and rates with three significant digits."""

from __future__ import annotations

__all__ = ["count", "duration", "percent", "quotient", "rate", "size", "speedup"]


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


def quotient(a_s: float, b_s: float) -> float:
    """``a_s / b_s`` as a reader gets it who divides what ``duration`` prints of them; 1 where one
    of them is 0, as nothing was timed then."""
    shown_a_s, shown_b_s = _read(duration(a_s)), _read(duration(b_s))
    return shown_a_s / shown_b_s if shown_a_s and shown_b_s else 1.0


def speedup(before_s: float, after_s: float) -> str:
    """``2.75x``: how many times as fast, as the quotient of the printed durations."""
    return f"{quotient(before_s, after_s):.2f}x"


def size(nbytes: float) -> str:
    """``4.20 MB``; SI units, 1 MB = 1e6 bytes."""
    return _scaled(nbytes, "B")


def rate(bytes_per_s: float) -> str:
    """``1.25 GB/s``; SI units."""
    return _scaled(bytes_per_s, "B/s")


def percent(share: float) -> str:
    """``12.3 %``."""
    return f"{100 * share:.1f} %"


def _read(text: str) -> float:
    number, unit = text.split()
    return float(number) * {"s": 1.0, "ms": 1e-3, "us": 1e-6}[unit]


def _scaled(value: float, unit: str) -> str:
    for prefix, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{_three(value / scale)} {prefix}{unit}"
    return f"{value:.0f} {unit}"


def _three(value: float) -> str:
    """Three significant digits, without an exponent."""
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}"
