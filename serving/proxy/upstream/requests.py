"""The bytes of a request as an endpoint gets them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Final

from trainmesh.serving.adapters import adapter_for, rename_model, upstream_path
from trainmesh.serving.adapters.paths import upstream_name
from trainmesh.serving.decide.endpoint import Endpoint
from trainmesh.serving.proxy.loops import ViaChain
from trainmesh.serving.proxy.reading.api import EMBEDDINGS
from trainmesh.serving.proxy.reading.call import Call
from trainmesh.serving.proxy.reading.headers import VIA
from trainmesh.serving.proxy.reading.request_ids import for_endpoint
from trainmesh.serving.proxy.upstream.answer import UpstreamRequest

__all__ = ["RequestWriter"]

MAX_HEADS: Final = 1024
"""Kept: clients make up as many query strings as they like."""


class RequestWriter:
    """Writes the requests for a model to its endpoints, each in the API of its runtime.

    Args:
        model: its name in serve.yaml.
        endpoints: its endpoints, each with the ``host:port`` for its Host field.
        way: adds this router to those that a request has been through.
    """

    __slots__ = ("_adapters", "_authorities", "_heads", "_keys", "_model", "_way")

    def __init__(
        self,
        model: str,
        endpoints: Sequence[Endpoint],
        authorities: Mapping[Endpoint, bytes],
        way: ViaChain,
    ) -> None:
        self._model = model
        self._way = way
        self._authorities = authorities
        self._adapters = {e: adapter_for(e.config, model) for e in endpoints}
        self._keys = {e: _key_field(e.config.api_key_env) for e in endpoints}
        self._heads: dict[tuple[Endpoint, bytes], bytes] = {}

    def request(
        self, endpoint: Endpoint, call: Call, request_id: str, traceparent: bytes
    ) -> UpstreamRequest:
        """The bytes of ``call`` for ``endpoint``.

        Raises:
            Unsupported: its runtime can't do what is asked.
        """
        adapter = self._adapters[endpoint]
        body, target, inbound = call.body, call.target, None
        fields = call.passed_fields()
        if adapter is not None:
            sent = adapter.outbound(call.path, body)
            body, target = sent.body, sent.path
            inbound = adapter.inbound(sent, request_id=request_id, created_s=int(time.time()))
            fields = [(b"content-type", sent.content_type)]
        else:
            name = upstream_name(endpoint.config, self._model)
            if name != call.model and not call.adapter:
                body = rename_model(body, name)
        head = [
            self._heads.get((endpoint, target)) or self._head(endpoint, call, target),
            self._keys[endpoint] or call.passed_key,
            *[b"%s: %s\r\n" % pair for pair in fields],
            b"x-request-id: %s\r\n" % for_endpoint(call, request_id),
            b"traceparent: %s\r\n" % traceparent if traceparent else b"",
            self._way.field(call.special.get(VIA)),
            b"content-length: %d\r\n\r\n" % len(body),
        ]
        generates = call.path != EMBEDDINGS
        return UpstreamRequest(
            b"".join(head), body, inbound, decode=call.http10, generates=generates
        )

    def _head(self, endpoint: Endpoint, call: Call, target: bytes) -> bytes:
        """The first lines; ``target`` may have a query."""
        path = target
        if self._adapters[endpoint] is None:
            path = upstream_path(endpoint.config, call.path, self._model) + call.query
        head = b"POST %s HTTP/1.1\r\nhost: %s\r\n" % (path, self._authorities[endpoint])
        if len(self._heads) < MAX_HEADS:
            self._heads[endpoint, target] = head
        return head


def _key_field(variable: str) -> bytes:
    if not variable:
        return b""
    return b"authorization: Bearer %s\r\n" % os.environ.get(variable, "").encode()
