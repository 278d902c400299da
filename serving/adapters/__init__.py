"""Endpoints that don't speak OpenAI's API: Triton, KServe v2, plain TorchServe handlers.

``docs/serve_runtimes.md`` says which runtimes need one, and what each can't do.
"""

from __future__ import annotations

from trainmesh.serving.adapters.kserve import KserveAdapter
from trainmesh.serving.adapters.paths import (
    handler_path,
    rename_model,
    upstream_name,
    upstream_path,
)
from trainmesh.serving.adapters.torchserve import TorchServeAdapter
from trainmesh.serving.adapters.triton import TritonAdapter
from trainmesh.serving.adapters.types import (
    Adapter,
    AdapterError,
    Inbound,
    Outbound,
    Unsupported,
)
from trainmesh.serving.config.types import EndpointConfig, Runtime

__all__ = [
    "Adapter",
    "AdapterError",
    "Inbound",
    "Outbound",
    "Unsupported",
    "adapter_for",
    "rename_model",
    "upstream_name",
    "upstream_path",
]


def adapter_for(endpoint: EndpointConfig, model: str) -> Adapter | None:
    """What translates for ``endpoint``; ``None`` where requests are forwarded as they are."""
    if endpoint.runtime is Runtime.TRITON:
        return TritonAdapter(endpoint, model)
    if endpoint.runtime is Runtime.KSERVE:
        return KserveAdapter(endpoint, model)
    handler = handler_path(endpoint) if endpoint.runtime is Runtime.TORCHSERVE else None
    return None if handler is None else TorchServeAdapter(handler)
