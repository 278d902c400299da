"""Reads OpenAI's requests for translation. A parameter that would change the answer and has no
translation is refused, never dropped."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from trainmesh.serving.adapters.prompt import ChatMessage, plain_prompt
from trainmesh.serving.adapters.types import (
    Call,
    EmbeddingCall,
    Sampling,
    TextCall,
    Unsupported,
)

__all__ = ["CHAT_TOKENS", "COMPLETION_TOKENS", "parse_call"]

COMPLETION_TOKENS = 16
"""``max_tokens`` of a completion without it (OpenAI's default)."""
CHAT_TOKENS = 1024
"""``max_tokens`` of a chat without it. OpenAI's is unlimited; these engines need a number."""

_AT = re.compile(r"^(.*) - at `(?:key in )?\$\.?(.*)`$", re.DOTALL)

_WITHOUT_EFFECT = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)
"""Parameters that change nothing in an answer without tools."""

_NEUTRAL: dict[str, tuple[object, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "response_format": ({"type": "text"},),
    "stream": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
"""Values of parameters without translation that ask for nothing; ``null`` is one for all."""

Tokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Stop = Annotated[str, Meta(min_length=1, max_length=256)]
Text = Annotated[str, Meta(min_length=1)]


class _StreamOptions(Struct):
    include_usage: bool | None = None


class _Text(Struct):
    model: str
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


class _Completion(_Text, kw_only=True):
    prompt: str | Annotated[list[str], Meta(min_length=1)]


class _Chat(_Text, kw_only=True):
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=10_000)]
    max_completion_tokens: Tokens | None = None


class _Embedding(Struct):
    model: str
    input: Text | Annotated[list[Text], Meta(min_length=1, max_length=2048)]
    encoding_format: str | None = None


Request = TypeVar("Request", _Chat, _Completion, _Embedding)


def parse_call(path: bytes, body: bytes) -> Call:
    """Read a request's body.

    Raises:
        Unsupported: it is not valid, or asks for what has no translation.
    """
    fields = _fields(body)
    if path == b"/v1/chat/completions":
        return _chat(_convert(fields, _Chat))
    if path == b"/v1/completions":
        return _completion(_convert(fields, _Completion))
    if path == b"/v1/embeddings":
        return _embedding(_convert(fields, _Embedding))
    raise Unsupported("", f"this endpoint has nothing like {path.decode('latin-1')}")


def _fields(body: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        raise Unsupported("", "the body is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unsupported("", f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Unsupported("", "the body is not a JSON object")
    return value


def _convert(fields: dict[str, Any], kind: type[Request]) -> Request:
    for name, value in fields.items():
        if name in kind.__struct_fields__ or name in _WITHOUT_EFFECT or value is None:
            continue
        if not any(type(value) is type(none) and value == none for none in _NEUTRAL.get(name, ())):
            raise Unsupported(name, "this endpoint's protocol has no such parameter; leave it out")
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        why, _, param = str(error), "", ""
        if found := _AT.match(why):
            why, param = found[1], found[2]
        raise Unsupported(param, why) from None


def _sampling(body: _Text, max_tokens: int) -> Sampling:
    stop = body.stop
    return Sampling(
        max_tokens=max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        seed=body.seed,
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
    )


def _text_call(body: _Text, prompt: str, *, chat: bool, max_tokens: int) -> TextCall:
    options = body.stream_options
    return TextCall(
        model=body.model,
        chat=chat,
        prompt=prompt,
        sampling=_sampling(body, max_tokens),
        stream=bool(body.stream),
        include_usage=bool(options and options.include_usage),
    )


def _chat(body: _Chat) -> TextCall:
    limit = body.max_completion_tokens or body.max_tokens or CHAT_TOKENS
    return _text_call(body, plain_prompt(body.messages), chat=True, max_tokens=limit)


def _completion(body: _Completion) -> TextCall:
    prompt = body.prompt
    if isinstance(prompt, list):
        if len(prompt) != 1:
            raise Unsupported("prompt", "this endpoint takes one prompt a request")
        prompt = prompt[0]
    return _text_call(body, prompt, chat=False, max_tokens=body.max_tokens or COMPLETION_TOKENS)


def _embedding(body: _Embedding) -> EmbeddingCall:
    form = body.encoding_format or "float"
    if form not in ("float", "base64"):
        raise Unsupported("encoding_format", f"float or base64, not {form!r:.200}")
    inputs = (body.input,) if isinstance(body.input, str) else tuple(body.input)
    return EmbeddingCall(model=body.model, inputs=inputs, base64=form == "base64")
