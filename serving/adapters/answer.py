"""OpenAI's answers, made of what an engine said."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from trainmesh.serving.adapters.text import StopCutter
from trainmesh.serving.adapters.types import AdapterError, EmbeddingCall, TextCall, Usage
from trainmesh.serving.api_errors import error_body

__all__ = ["TextWriter", "embedding_document", "upstream_error"]

_MESSAGE_CHARS = 2000


class _ErrorAnswer(msgspec.Struct):
    """Triton, KServe, OVMS and TGI say ``error``; TorchServe ``message``; FastAPI ``detail``."""

    error: Any = None
    message: Any = None
    detail: Any = None


class TextWriter:
    """Writes one completion, whole or as a stream, ended before the first stop sequence."""

    def __init__(self, call: TextCall, request_id: str, created_s: int) -> None:
        self._call = call
        self._cutter = StopCutter(call.sampling.stop)
        self._begun = False
        kind, prefix = ("chat.completion", "chatcmpl") if call.chat else ("text_completion", "cmpl")
        if call.chat and call.stream:
            kind += ".chunk"
        self._head: dict[str, Any] = {
            "id": f"{prefix}-{request_id}",
            "object": kind,
            "created": created_s,
            "model": call.model,
        }

    @property
    def stopped(self) -> bool:
        """A stop sequence was found; what comes after it is not shown."""
        return self._cutter.stopped

    def delta(self, text: str) -> bytes:
        """The next piece of the text as events; empty while there is nothing to show."""
        return self._shown(self._cutter.feed(text))

    def close(self, reason: str, usage: Usage | None) -> bytes:
        """The events that end a stream."""
        last = self._shown(self._cutter.end())
        if not self._begun:
            last += self._begin()
        reason = "stop" if self.stopped else reason
        last += self._event(self._choice({} if self._call.chat else "", reason))
        if usage is not None and self._call.include_usage:
            last += _sse({**self._head, "choices": [], "usage": _usage(usage)})
        return last + b"data: [DONE]\n\n"

    def document(self, text: str, reason: str, usage: Usage | None) -> bytes:
        """A whole answer."""
        shown = self._cutter.feed(text) + self._cutter.end()
        reason = "stop" if self.stopped else reason
        content: Any = {"role": "assistant", "content": shown} if self._call.chat else shown
        answer = {**self._head, "choices": [self._choice(content, reason)]}
        if usage is not None:
            answer["usage"] = _usage(usage)
        return msgspec.json.encode(answer)

    def _choice(self, content: Any, reason: str | None) -> dict[str, Any]:
        if not self._call.chat:
            return {"index": 0, "text": content, "logprobs": None, "finish_reason": reason}
        name = "delta" if self._call.stream else "message"
        return {"index": 0, name: content, "logprobs": None, "finish_reason": reason}

    def _begin(self) -> bytes:
        self._begun = True
        if not self._call.chat:
            return b""
        return self._event(self._choice({"role": "assistant", "content": ""}, None))

    def _shown(self, text: str) -> bytes:
        if not text:
            return b""
        first = b"" if self._begun else self._begin()
        return first + self._event(
            self._choice({"content": text} if self._call.chat else text, None)
        )

    def _event(self, choice: dict[str, Any]) -> bytes:
        return _sse({**self._head, "choices": [choice]})


def _sse(value: dict[str, Any]) -> bytes:
    return b"data: %s\n\n" % msgspec.json.encode(value)


def _usage(usage: Usage) -> dict[str, int]:
    prompt, completion = usage
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def embedding_document(call: EmbeddingCall, vectors: Sequence[Sequence[float]]) -> bytes:
    """The vectors of ``call.inputs``, in their order; without ``usage``, for none tells it.

    Raises:
        AdapterError: a number is too large for float32, and base64 was asked for.
    """
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(vector, call.base64)}
        for index, vector in enumerate(vectors)
    ]
    return msgspec.json.encode({"object": "list", "data": data, "model": call.model})


def _vector(vector: Sequence[float], as_base64: bool) -> Sequence[float] | str:
    if not as_base64:
        return vector
    try:
        packed = struct.pack(f"<{len(vector)}f", *vector)
    except OverflowError as error:
        raise AdapterError(f"the endpoint's vector does not fit float32: {error}") from None
    return base64.b64encode(packed).decode()


def upstream_error(status: int, body: bytes) -> tuple[int, bytes]:
    """An endpoint's error in OpenAI's form. The status stays, but one below 400 becomes 502."""
    message = _message(body).strip()[:_MESSAGE_CHARS] or f"the endpoint answered {status}"
    status = status if status >= 400 else 502
    return status, error_body(status, message, code="upstream_error")


def _message(body: bytes) -> str:
    try:
        answer = msgspec.json.decode(body, type=_ErrorAnswer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return body[: 4 * _MESSAGE_CHARS].decode("utf-8", "replace")
    said = answer.error or answer.message or answer.detail or ""
    if isinstance(said, dict):  # an OpenAI error already
        said = said.get("message", "")
    return said if isinstance(said, str) else msgspec.json.encode(said).decode()
