"""What the router answers itself: whether it is alive and ready, and which models there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import msgspec

from trainmesh.serving.proxy.reading.api import meant_path
from trainmesh.serving.proxy.reading.call import Call
from trainmesh.serving.proxy.replies.answers import json_answer
from trainmesh.serving.refusal import Refusal, RequestRefused, refused

__all__ = ["health_answer", "is_health_path", "models_answer", "unknown_path"]

ALIVE_PATHS: Final = frozenset((b"/health", b"/healthz", b"/livez"))
_OURS: Final = {"id": "", "object": "model", "created": 0, "owned_by": "trainmesh"}
"""Of a model whose endpoints say nothing."""
READY_PATHS: Final = frozenset((b"/ready", b"/readyz"))
"""As Kubernetes and load balancers ask for them: without a key, and to the listener as well as to
the admin server."""


def is_health_path(target: bytes) -> bool:
    path = target.partition(b"?")[0]
    return path in ALIVE_PATHS or path in READY_PATHS


def health_answer(
    call: Call, missing: Mapping[str, str], num_models: int, head: bytes = b""
) -> bytes:
    """Alive as long as it answers; ready while a model can be served.

    Args:
        call: what is asked.
        missing: model -> why none of its endpoints is in service.
        num_models: how many there are.
        head: header fields of every answer.

    Raises:
        RequestRefused: 405.
    """
    if call.method not in (b"GET", b"HEAD"):
        raise RequestRefused(_wants_get(call.path.decode(), b"GET, HEAD"))
    ready = call.path in ALIVE_PATHS or len(missing) < num_models
    said: dict[str, object] = {"status": "ok" if ready else "not ready"}
    if call.path in READY_PATHS and missing:
        said["missing"] = missing
    body = msgspec.json.encode(said)
    status = 200 if ready else 503
    return json_answer(status, body, head=head, bodiless=call.method == b"HEAD")


def models_answer(call: Call, names: Mapping[str, Mapping[str, Any]], head: bytes = b"") -> bytes:
    """The models of ``names``, or the one in the path.

    Args:
        call: what is asked.
        names: each with the fields that its endpoints have for it.
        head: header fields of every answer.

    Raises:
        RequestRefused: 404 or 405.
    """
    if call.method != b"GET":
        raise RequestRefused(_wants_get("/v1/models", b"GET"))
    seen = [{**_OURS, **fields, "id": name} for name, fields in names.items()]
    wanted = call.path.removeprefix(b"/v1/models").removeprefix(b"/")
    if not wanted:
        return json_answer(200, msgspec.json.encode({"object": "list", "data": seen}), head=head)
    name = unquote_to_bytes(wanted).decode("utf-8", "replace")
    for model in seen:
        if model["id"] == name:
            return json_answer(200, msgspec.json.encode(model), head=head)
    raise refused(404, f"the model {name[:200]!r} does not exist", code="model_not_found")


def unknown_path(call: Call) -> Refusal:
    """There is nothing at its path; says which one may have been meant."""
    path = call.path[:200].decode("ascii", "replace")
    meant = meant_path(call.path)
    hint = f"the path is {meant}" if meant else "see /v1/models"
    return Refusal(404, f"there is no {path} here; {hint}", code="unknown_url")


def _wants_get(path: str, methods: bytes) -> Refusal:
    fields = b"allow: %s\r\n" % methods
    return Refusal(405, f"{path} wants GET", code="method_not_allowed", fields=fields)
