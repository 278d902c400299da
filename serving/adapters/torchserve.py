"""A TorchServe handler that takes a prompt and has no OpenAI API: ``POST /predictions/NAME``.

What is sent is what TorchServe's own vLLM handler reads: ``prompt`` beside vLLM's sampling
parameters. Two kinds of answer are understood: JSON objects one after another, each with a piece
of the text as ``text`` (that handler's), or plain text (handlers that return a string). Either may
come in pieces (TorchServe's streaming by chunked encoding).
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from trainmesh.serving.adapters.answer import TextWriter, upstream_error
from trainmesh.serving.adapters.call import parse_call
from trainmesh.serving.adapters.text import MAX_EVENT_BYTES, Utf8Joiner, WholeBody, clean
from trainmesh.serving.adapters.types import (
    AdapterError,
    EmbeddingCall,
    Outbound,
    TextCall,
    Unsupported,
)

__all__ = ["TorchServeAdapter"]

_json = json.JSONDecoder()


class TorchServeAdapter:
    """One handler. ``path``: the path of its url."""

    def __init__(self, path: bytes) -> None:
        self._path = path

    def outbound(self, path: bytes, body: bytes) -> Outbound:
        call = parse_call(path, body)
        if isinstance(call, EmbeddingCall):
            raise Unsupported("", "this endpoint makes no embeddings")
        chosen = msgspec.structs.asdict(call.sampling)
        given = {name: value for name, value in chosen.items() if value not in (None, ())}
        sent = msgspec.json.encode({"prompt": call.prompt, **given})
        return Outbound(self._path, sent, b"application/json", call)

    def inbound(self, sent: Outbound, *, request_id: str, created_s: int) -> _Inbound:
        if not isinstance(sent.call, TextCall):
            raise TypeError("outbound of this adapter makes text calls only")
        return _Inbound(TextWriter(sent.call, request_id, created_s), sent.call.stream)


class _Inbound:
    """The answer of one handler; the client's form (whole or stream) does not depend on it."""

    done = False

    def __init__(self, writer: TextWriter, streaming: bool) -> None:
        self._writer = writer
        self._joiner = Utf8Joiner()
        self._pending = ""
        self._plain: bool | None = None
        self._answered = False
        self._text = WholeBody()
        self.streaming = streaming

    def body(self, data: bytes) -> bytes:
        return self._show(self._pieces(self._joiner.feed(data)))

    def end(self) -> bytes:
        if self.done:
            return b""
        shown = self._show(self._pieces(self._joiner.end()))
        if self._writer.stopped:
            return shown
        if self._plain is None or not self._answered or self._pending:
            raise AdapterError("the endpoint's answer ended in the middle, or was empty")
        if self.streaming:
            return shown + self._writer.close("stop", None)
        return self._writer.document(self._text.take().decode(), "stop", None)

    def error(self, status: int, body: bytes) -> tuple[int, bytes]:
        return upstream_error(status, body)

    def _show(self, text: str) -> bytes:
        if not self.streaming:
            self._text.add(text.encode())
            return b""
        if self.done:
            return b""
        shown = self._writer.delta(text)
        if self._writer.stopped:
            self.done = True
            shown += self._writer.close("stop", None)
        return shown

    def _pieces(self, arrived: str) -> str:
        """The text in what arrived; an incomplete object waits for the rest."""
        if self._plain is None:
            arrived = arrived.lstrip()
            if not arrived:
                return ""
            self._plain = arrived[0] != "{"
        if self._plain:
            self._answered = True
            return arrived
        self._pending = (self._pending + arrived).lstrip()
        return self._objects() if "}" in arrived else self._bounded()

    def _objects(self) -> str:
        texts: list[str] = []
        while self._pending:
            try:
                value, end = _json.raw_decode(self._pending)
            except ValueError:
                break
            except RecursionError:
                raise AdapterError("the endpoint's answer is nested too deeply") from None
            texts.append(_piece(value))
            self._answered = True
            self._pending = self._pending[end:].lstrip()
        return "".join(texts) + self._bounded()

    def _bounded(self) -> str:
        if len(self._pending) > MAX_EVENT_BYTES:
            raise AdapterError(f"the endpoint sent an object larger than {MAX_EVENT_BYTES} bytes")
        return ""


def _piece(value: Any) -> str:
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        joiner = Utf8Joiner()
        return joiner.feed_text(value["text"]) + joiner.end()
    said = value.get("message", "") if isinstance(value, dict) else ""
    raise AdapterError(f"the endpoint's answer has no text: {clean(said or value)}")
