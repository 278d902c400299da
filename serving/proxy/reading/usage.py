"""What an answer says it has counted (``usage``), found in its end without parsing it."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

__all__ = ["NO_USAGE", "USAGE_BYTES", "USAGE_PIECES", "PartialUsage", "find_usage"]

USAGE_BYTES: Final = 2_048
"""Of the end of a piece: servers write the counts behind the choices."""
USAGE_PIECES: Final = 4
"""A stream ends in the counts, [DONE] and its last chunk, which may come in a piece each."""
MAX_TOKENS: Final = 10_000_000
_COUNTS: Final = re.compile(
    rb'"(prompt|input|completion|output)_tokens"\s*:\s*([0-9]{1,9})(?![0-9.eE])'
)
"""A quotation mark inside a text is escaped, so none of a text's own can stand here."""


class PartialUsage(NamedTuple):
    """Tokens; 0: not said."""

    prompt_tokens: int
    output_tokens: int


NO_USAGE: Final = PartialUsage(0, 0)


def find_usage(end: bytes) -> PartialUsage:
    """The counts behind the last ``"usage"`` in ``end``: OpenAI's names, chat's and responses'."""
    at = end.rfind(b'"usage"')
    if at < 0:
        return NO_USAGE
    prompt = output = 0
    for found in _COUNTS.finditer(end, at):
        tokens = min(int(found[2]), MAX_TOKENS)
        if found[1] in (b"prompt", b"input"):
            prompt = prompt or tokens
        else:
            output = output or tokens
    return PartialUsage(prompt, output)
