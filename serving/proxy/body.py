"""The members of a request's body that routing needs."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

__all__ = ["Body", "decode"]


class Body(Struct):
    """The members of a body that routing needs."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    stream: bool | None = None
    max_tokens: Annotated[int, Meta(ge=0, le=2**31)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=0, le=2**31)] | None = None
    prompt_cache_key: str | None = None


decode = msgspec.json.Decoder(Body).decode
