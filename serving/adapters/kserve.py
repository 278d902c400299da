"""KServe v2, the Open Inference Protocol: ``POST /v2/models/M/infer``, one JSON document each way.

What is sent: a BYTES tensor ``text_input`` with a row for each text, and for completions the
sampling parameters among the request's ``parameters``. What is expected back: a BYTES tensor
(``text_output``, or the only one) with one element, or for embeddings a floating-point tensor
(``embedding``, or the only one) of a row for each text. Source of the format: the specification's
``inference_rest.md``; Triton and OVMS write the same.

The protocol has no streams: a client that asked for one gets the text in one piece.
"""

from __future__ import annotations

import math
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Struct

from trainmesh.serving.adapters.answer import TextWriter, embedding_document, upstream_error
from trainmesh.serving.adapters.call import parse_call
from trainmesh.serving.adapters.paths import base_path, upstream_name
from trainmesh.serving.adapters.text import Utf8Joiner, WholeBody, clean, decode_answer
from trainmesh.serving.adapters.types import (
    AdapterError,
    EmbeddingCall,
    Outbound,
    Sampling,
    TextCall,
)
from trainmesh.serving.config.types import EndpointConfig

__all__ = ["KserveAdapter", "KserveInbound", "infer_body", "model_path"]

_TEXT_NAMES = ("text_output", "output_text", "generated_text", "output")
_VECTOR_NAMES = ("embedding", "embeddings", "sentence_embedding", "text_embedding", "output")
_FLOATS = ("FP16", "BF16", "FP32", "FP64")
_MAX_RANK = 8


class _Tensor(Struct):
    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None


class _Answer(Struct):
    outputs: list[_Tensor] = []
    error: Any = None


def model_path(endpoint: EndpointConfig, model: str) -> bytes:
    """``/v2/models/M`` below the url's own path."""
    name = quote(upstream_name(endpoint, model), safe="")
    return base_path(endpoint) + b"/v2/models/" + name.encode()


def infer_body(
    texts: tuple[str, ...], *, batched: bool = False, parameters: dict[str, Any] | None = None
) -> bytes:
    """The JSON of an inference request. ``batched``: the model has a batch dimension before the
    tensor's own, as models of Triton with ``max_batch_size`` have."""
    shape = [len(texts), 1] if batched else [len(texts)]
    tensor = {"name": "text_input", "shape": shape, "datatype": "BYTES", "data": texts}
    request: dict[str, Any] = {"inputs": [tensor]}
    if parameters:
        request["parameters"] = parameters
    return msgspec.json.encode(request)


class KserveAdapter:
    """Any server of the protocol."""

    def __init__(self, endpoint: EndpointConfig, model: str) -> None:
        self._path = model_path(endpoint, model) + b"/infer"

    def outbound(self, path: bytes, body: bytes) -> Outbound:
        call = parse_call(path, body)
        if isinstance(call, EmbeddingCall):
            sent = infer_body(call.inputs)
        else:
            sent = infer_body((call.prompt,), parameters=_parameters(call.sampling))
        return Outbound(self._path, sent, b"application/json", call)

    def inbound(self, sent: Outbound, *, request_id: str, created_s: int) -> KserveInbound:
        return KserveInbound(sent, request_id, created_s)


def _parameters(sampling: Sampling) -> dict[str, Any]:
    """The protocol's parameters are strings, numbers or booleans: several stops stay with us."""
    chosen = msgspec.structs.asdict(sampling)
    stops = chosen.pop("stop")
    if len(stops) == 1:
        chosen["stop"] = stops[0]
    return {name: value for name, value in chosen.items() if value is not None}


class KserveInbound:
    """One inference response."""

    done = False

    def __init__(self, sent: Outbound, request_id: str, created_s: int) -> None:
        self._call = sent.call
        self._id = request_id
        self._created_s = created_s
        self._document = WholeBody()
        self.streaming = isinstance(sent.call, TextCall) and sent.call.stream

    def body(self, data: bytes) -> bytes:
        self._document.add(data)
        return b""

    def end(self) -> bytes:
        answer = decode_answer(self._document.take(), _Answer)
        if answer.error:
            raise AdapterError(f"the endpoint answered with an error: {clean(answer.error)}")
        if isinstance(self._call, EmbeddingCall):
            return embedding_document(self._call, _vectors(answer.outputs, len(self._call.inputs)))
        text = _text(answer.outputs)
        writer = TextWriter(self._call, self._id, self._created_s)
        if self.streaming:
            return writer.delta(text) + writer.close("stop", None)
        return writer.document(text, "stop", None)

    def error(self, status: int, body: bytes) -> tuple[int, bytes]:
        return upstream_error(status, body)


def _pick(
    outputs: list[_Tensor], names: tuple[str, ...], datatypes: tuple[str, ...], what: str
) -> _Tensor:
    fitting = [tensor for tensor in outputs if tensor.datatype in datatypes]
    for name in names:
        for tensor in fitting:
            if tensor.name == name:
                return tensor
    if len(fitting) == 1:
        return fitting[0]
    found = ", ".join(f"{clean(one.name)} ({clean(one.datatype)})" for one in outputs[:8])
    raise AdapterError(
        f"the endpoint's answer has no {what}: its outputs are {found or 'none'}; "
        f"one must be named {names[0]}"
    )


def _flat(tensor: _Tensor) -> list[Any]:
    """Elements in row-major order; the protocol allows ``data`` nested like the shape, or flat."""
    values = tensor.data
    if values is None:
        raise AdapterError(f"output {clean(tensor.name)} has no data in JSON")
    for _ in range(_MAX_RANK):
        if not any(isinstance(value, list) for value in values):
            break
        values = [x for value in values for x in (value if isinstance(value, list) else (value,))]
    expected = math.prod(tensor.shape)
    if min(tensor.shape, default=0) < 0 or len(values) != expected:
        raise AdapterError(
            f"output {clean(tensor.name)} has {len(values)} elements, its shape says {expected}"
        )
    return values


def _text(outputs: list[_Tensor]) -> str:
    tensor = _pick(outputs, _TEXT_NAMES, ("BYTES",), "text")
    values = _flat(tensor)
    if len(values) != 1 or not isinstance(values[0], str):
        raise AdapterError(
            f"output {clean(tensor.name)} must be one string, not {len(values)} elements"
        )
    joiner = Utf8Joiner()
    return joiner.feed_text(values[0]) + joiner.end()


def _vectors(outputs: list[_Tensor], count: int) -> list[list[float]]:
    tensor = _pick(outputs, _VECTOR_NAMES, _FLOATS, "vectors")
    shape = tensor.shape if len(tensor.shape) != 1 or count != 1 else [1, *tensor.shape]
    if len(shape) != 2 or shape[0] != count or shape[1] == 0:
        raise AdapterError(
            f"output {clean(tensor.name)} has the shape {tensor.shape}; "
            f"{count} texts need [{count}, dimensions]"
        )
    values = _flat(tensor)
    if not all(type(value) in (float, int) and math.isfinite(value) for value in values):
        raise AdapterError(f"output {clean(tensor.name)} has elements that are no finite numbers")
    width = shape[1]
    return [values[start : start + width] for start in range(0, len(values), width)]
