"""The paths at which an endpoint takes requests, and its own name for the model."""

from __future__ import annotations

import json
import re
from urllib.parse import quote, urlsplit

import msgspec

from trainmesh.serving.config.types import EndpointConfig, Runtime

__all__ = ["base_path", "handler_path", "rename_model", "upstream_name", "upstream_path"]

_API = (b"/v1", b"/v3")
_HANDLER = re.compile(rb"/predictions/[^/]+$")
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\]:,]', re.DOTALL)
_BLANK = b" \t\r\n"


def upstream_name(endpoint: EndpointConfig, model: str) -> str:
    """What the endpoint calls ``model``."""
    return endpoint.served_model or model


def base_path(endpoint: EndpointConfig) -> bytes:
    """The path in the endpoint's url, without a slash at its end."""
    return urlsplit(endpoint.url).path.rstrip("/").encode()


def handler_path(endpoint: EndpointConfig) -> bytes | None:
    """The url's path where it names a TorchServe handler (``/predictions/NAME``, no version):
    TorchServe passes OpenAI's paths on only below ``/predictions/NAME/VERSION``."""
    base = base_path(endpoint)
    return base if _HANDLER.search(base) else None


def upstream_path(endpoint: EndpointConfig, path: bytes, model: str) -> bytes:
    """The path for a request to ``path`` (``/v1/...``) that is forwarded as it is.

    A path in the endpoint's url goes in front, and may end in ``/v1`` itself. Without one, OVMS
    gets ``/v3/...`` and TorchServe ``/predictions/MODEL/1.0/v1/...``. Constant for an endpoint, so
    callers keep it.
    """
    base = base_path(endpoint)
    rest = path.removeprefix(b"/v1")
    if rest == path:
        return base + path
    if endpoint.runtime is Runtime.TORCHSERVE and not base:
        base = b"/predictions/%s/1.0" % quote(upstream_name(endpoint, model), safe="").encode()
    if base.endswith(_API):
        return base + rest
    api = b"/v3" if endpoint.runtime is Runtime.OVMS else b"/v1"
    return base + api + rest


def rename_model(body: bytes, name: str) -> bytes:
    """Set the member ``model`` of the JSON object ``body`` to ``name``; all other bytes stay.

    Of a member that is there twice, each is set, so that no reader can see another name. A body
    without one, or that is no object, comes back as it is.
    """
    spans = _model_spans(body)
    value = msgspec.json.encode(name)
    for start, end in reversed(spans):
        body = body[:start] + value + body[end:]
    return body


def _model_spans(body: bytes) -> list[tuple[int, int]]:
    """Where the values of the outermost object's ``model`` members are."""
    spans: list[tuple[int, int]] = []
    depth = 0
    key = b""
    start = -1
    for token in _TOKEN.finditer(body):
        text = token[0]
        if depth == 1 and text in (b",", b"}"):
            if start >= 0:
                spans.append(_stripped(body, start, token.start()))
            start = -1
        elif depth == 1 and text == b":":
            start = token.end() if _is_model(key) else -1
        elif depth == 1 and text[0] == 0x22:
            key = text
        if text in (b"{", b"["):
            depth += 1
        elif text in (b"}", b"]"):
            depth -= 1
    return spans


def _is_model(key: bytes) -> bool:
    if b"\\" not in key:
        return key == b'"model"'
    try:
        return bool(json.loads(key) == "model")
    except ValueError:
        return False


def _stripped(body: bytes, start: int, end: int) -> tuple[int, int]:
    while start < end and body[start] in _BLANK:
        start += 1
    while end > start and body[end - 1] in _BLANK:
        end -= 1
    return start, end
