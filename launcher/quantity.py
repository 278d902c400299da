"""Sizes as people write them on a command line."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError

__all__ = ["nbytes"]

SCALES: dict[str, int] = {
    "": 1,
    "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", start=1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)},
}


def nbytes(text: str) -> int:
    """``64MB``, ``1.5 GB``, ``25MiB`` or ``4096`` in bytes; the case of letters doesn't matter.

    Raises:
        ArgumentTypeError: nothing of the kind, or not a whole number of bytes from 1 to 2^63-1.
    """
    match = re.fullmatch(r"(\d{1,18})(?:\.(\d{1,12}))?\s*([a-zA-Z]{0,3})", text, re.ASCII)
    if match is None or match[3].lower() not in SCALES:
        raise ArgumentTypeError(f"{text!r} is not a size such as 4096, 64MB or 25MiB")
    decimals = match[2] or ""
    digits = int(match[1] + decimals)
    value, rest = divmod(digits * SCALES[match[3].lower()], int("1" + "0" * len(decimals)))
    if rest or not 0 < value < 2**63:
        raise ArgumentTypeError(f"{text!r} is not a whole number of bytes from 1 to 2^63-1")
    return value
