"""Triton's generate extension: ``POST /v2/models/M/generate`` and ``generate_stream`` (SSE).

A member of the request that is an input tensor of the model becomes that tensor, any other one a
request parameter (Triton's ``extension_generate.md``), so one request serves both LLM backends:

* vLLM reads ``sampling_parameters`` (JSON in a string) and the ``return_*`` switches, and tells
  finish reason and tokens (r24.12 and newer);
* TensorRT-LLM (``ensemble``, ``tensorrt_llm_bls``) reads ``max_tokens``, ``temperature`` and so
  on, and tells tokens in newer releases.

Request parameters can't be lists, so of several stop sequences only vLLM hears; the answer is cut
here in any case. Embeddings go to ``/infer``, see ``kserve``.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from trainmesh.serving.adapters.answer import TextWriter, upstream_error
from trainmesh.serving.adapters.call import parse_call
from trainmesh.serving.adapters.kserve import KserveInbound, infer_body, model_path
from trainmesh.serving.adapters.text import (
    EventReader,
    Utf8Joiner,
    WholeBody,
    clean,
    decode_answer,
)
from trainmesh.serving.adapters.types import (
    AdapterError,
    EmbeddingCall,
    Inbound,
    Outbound,
    TextCall,
    Usage,
)
from trainmesh.serving.config.types import EndpointConfig

__all__ = ["TritonAdapter", "generate_body"]

Texts = str | list[str] | None
Counts = int | list[int] | None


class _Answer(Struct):
    """A response, or an event of a stream. A tensor of one element is written without brackets."""

    text_output: Texts = None
    finish_reason: Texts = None
    num_input_tokens: Counts = None
    num_output_tokens: Counts = None
    error: Any = None


def generate_body(call: TextCall) -> bytes:
    """The JSON of a generate request."""
    sampling = call.sampling
    shared = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "seed": sampling.seed,
    }
    given = {name: value for name, value in shared.items() if value is not None}
    for_vllm = {**given, "stop": sampling.stop} if sampling.stop else given
    request: dict[str, Any] = {
        "text_input": call.prompt,
        "stream": call.stream,
        "exclude_input_in_output": True,
        "return_finish_reason": True,
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
        "sampling_parameters": msgspec.json.encode(for_vllm).decode(),
        # TensorRT-LLM's ensemble required both words before they became optional.
        "bad_words": "",
        "stop_words": sampling.stop[0] if len(sampling.stop) == 1 else "",
        **given,
    }
    if sampling.seed is not None:
        request["random_seed"] = sampling.seed  # the ensemble's name for it before r25
    return msgspec.json.encode(request)


class TritonAdapter:
    """A Triton Inference Server."""

    def __init__(self, endpoint: EndpointConfig, model: str) -> None:
        self._path = model_path(endpoint, model)

    def outbound(self, path: bytes, body: bytes) -> Outbound:
        call = parse_call(path, body)
        if isinstance(call, EmbeddingCall):
            sent, verb = infer_body(call.inputs, batched=True), b"/infer"
        else:
            sent = generate_body(call)
            verb = b"/generate_stream" if call.stream else b"/generate"
        return Outbound(self._path + verb, sent, b"application/json", call)

    def inbound(self, sent: Outbound, *, request_id: str, created_s: int) -> Inbound:
        call = sent.call
        if isinstance(call, EmbeddingCall):
            return KserveInbound(sent, request_id, created_s)
        writer = TextWriter(call, request_id, created_s)
        return _Stream(writer) if call.stream else _Whole(writer, call.sampling.max_tokens)


class _Whole:
    """The answer of ``generate``."""

    streaming = False
    done = False

    def __init__(self, writer: TextWriter, max_tokens: int) -> None:
        self._writer = writer
        self._max_tokens = max_tokens
        self._document = WholeBody()

    def body(self, data: bytes) -> bytes:
        self._document.add(data)
        return b""

    def end(self) -> bytes:
        answer = _checked(decode_answer(self._document.take(), _Answer))
        joiner = Utf8Joiner()
        text = joiner.feed_text(_one(answer.text_output)) + joiner.end()
        sent, told = _count(answer.num_input_tokens), _count(answer.num_output_tokens)
        reason = _reason(answer)
        if reason is None:
            reason = "length" if told is not None and told >= self._max_tokens else "stop"
        usage = None if sent is None or told is None else Usage(sent, told)
        return self._writer.document(text, reason, usage)

    def error(self, status: int, body: bytes) -> tuple[int, bytes]:
        return upstream_error(status, body)


class _Stream:
    """The events of ``generate_stream``. Only vLLM's tell when the text is complete and how many
    tokens each brought; TensorRT-LLM's just end."""

    streaming = True

    def __init__(self, writer: TextWriter) -> None:
        self._writer = writer
        self._events = EventReader()
        self._joiner = Utf8Joiner()
        self._prompt_tokens: int | None = None
        self._tokens = 0
        self._reason: str | None = None
        self._answered = False
        self._tells_reason = False
        self.done = False

    def body(self, data: bytes) -> bytes:
        if self.done:
            return b""
        shown = b""
        for event in self._events.feed(data):
            shown += self._event(_checked(decode_answer(event, _Answer)))
            if self._writer.stopped:
                self.done = True
                return shown + self._writer.close("stop", None)
        return shown

    def _event(self, answer: _Answer) -> bytes:
        self._answered = True
        if answer.finish_reason is not None:
            self._tells_reason = True
            self._reason = _reason(answer) or self._reason
        told = _count(answer.num_input_tokens)
        self._prompt_tokens = self._prompt_tokens if told is None else told
        self._tokens += _count(answer.num_output_tokens) or 0
        return self._writer.delta(self._joiner.feed_text(_one(answer.text_output)))

    def end(self) -> bytes:
        if self.done:
            return b""
        if not self._answered:
            raise AdapterError("the endpoint's stream ended without an event")
        if self._tells_reason and self._reason is None:
            raise AdapterError("the endpoint's stream ended before the text was finished")
        usage = None
        if self._tells_reason and self._prompt_tokens is not None:
            usage = Usage(self._prompt_tokens, self._tokens)
        last = self._writer.delta(self._joiner.end())
        return last + self._writer.close(self._reason or "stop", usage)

    def error(self, status: int, body: bytes) -> tuple[int, bytes]:
        return upstream_error(status, body)


def _checked(answer: _Answer) -> _Answer:
    if answer.error:
        raise AdapterError(f"the endpoint answered with an error: {clean(answer.error)}")
    if answer.text_output is None:
        raise AdapterError("the endpoint's answer has no text_output; is it a language model?")
    return answer


def _one(value: Texts) -> str:
    if isinstance(value, list):
        if len(value) > 1:
            raise AdapterError(f"the endpoint answered with {len(value)} texts; one was asked for")
        return value[0] if value else ""
    return value or ""


def _count(value: Counts) -> int | None:
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else None
    return value if value is not None and value >= 0 else None


def _reason(answer: _Answer) -> str | None:
    """vLLM writes Python's ``str(finish_reason)``: ``None`` until the text is finished."""
    said = _one(answer.finish_reason)
    if said in ("stop", "length"):
        return said
    if said in ("", "None"):
        return None
    raise AdapterError(f"the endpoint stopped in the middle: {clean(said)}")
