"""The members of a request's body that routing needs, read as endpoints read them.

Whatever else is in a body, and in what form, is the endpoint's business: what it takes, we take.
"""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
from msgspec import Struct

from trainmesh.serving.proxy.reading.prompt import Prompt, read_prompt

__all__ = ["Body", "decode"]

MAX_TOKENS = 2**31
TRUE_WORDS = frozenset(("1", "on", "t", "true", "y", "yes"))
"""What pydantic takes for true, with which most runtimes read a body."""


class Body(Struct, frozen=True):
    """What routing goes by."""

    model: str
    """Empty where the body names none."""
    stream: bool
    output_tokens: int
    """As many as may be generated; 0 where there is no such limit."""
    prompt_cache_key: str
    prompt: Prompt


class _Members(Struct):
    model: Any = None
    stream: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    prompt_cache_key: Any = None
    messages: Any = None
    prompt: Any = None
    input: Any = None
    instructions: Any = None
    tools: Any = None
    functions: Any = None


_decode = msgspec.json.Decoder(_Members).decode


def decode(data: bytes) -> Body:
    """Read a body.

    Raises:
        msgspec.ValidationError: it is JSON, but no request.
        msgspec.DecodeError, UnicodeDecodeError, RecursionError: it is not JSON.
    """
    try:
        members = _decode(data)
    except msgspec.DecodeError as error:
        members = _as_python_does(data, error)
    model = members.model
    if model is not None and not isinstance(model, str):
        raise msgspec.ValidationError("model must be a string")
    key = members.prompt_cache_key
    return Body(
        model=model or "",
        stream=_is_true(members.stream),
        output_tokens=_tokens(members.max_completion_tokens)
        or _tokens(members.max_tokens)
        or _tokens(members.max_output_tokens),
        prompt_cache_key=key if isinstance(key, str) else "",
        prompt=read_prompt(
            members.messages, members.prompt, members.input, members.instructions,
            members.tools or members.functions,
        ),
    )  # fmt: skip


def _as_python_does(data: bytes, error: msgspec.DecodeError) -> _Members:
    """Python's own reader, which most endpoints use, takes a byte-order mark, half of a surrogate
    pair, NaN and numbers of any size, which a strict one doesn't."""
    try:
        found = json.loads(data)
    except ValueError:
        raise error from None
    return msgspec.convert(found, _Members)


def _is_true(value: object) -> bool:
    if value is None:  # as in most requests
        return False
    if isinstance(value, str):
        return value.strip().lower() in TRUE_WORDS
    return value is True or (isinstance(value, int | float) and value == 1)


def _tokens(value: object) -> int:
    """A number of tokens, or 0 where it is no limit (-1 is llama.cpp's word for none)."""
    if value is None:  # as in most requests
        return 0
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return 0
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 0
    return min(max(int(value), 0), MAX_TOKENS)
