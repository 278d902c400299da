"""Which revision of its model an endpoint says it serves."""

from __future__ import annotations

from urllib.parse import quote

import msgspec

from trainmesh.serving.config.types import EndpointConfig, Runtime

__all__ = ["revision_path", "revisions_in"]


class _Told(msgspec.Struct):
    """TGI's ``/info``, SGLang's ``/get_model_info``, a model's metadata in the Open Inference
    Protocol (KServe v2); each has one of these."""

    model_sha: str | None = None
    weight_version: str | None = None
    versions: tuple[str, ...] = ()


def revision_path(endpoint: EndpointConfig, model: str) -> str:
    """Where to ask; empty for runtimes that don't say (vLLM, llama.cpp, TorchServe)."""
    match endpoint.runtime:
        case Runtime.TGI:
            return "/info"
        case Runtime.SGLANG:
            return "/get_model_info"
        case Runtime.TRITON | Runtime.KSERVE | Runtime.OVMS:
            return f"/v2/models/{quote(endpoint.served_model or model, safe='')}"
        case _:
            return ""


def revisions_in(body: bytes) -> tuple[str, ...]:
    """The revisions in an answer; empty where it has none."""
    try:
        told = msgspec.json.decode(body, type=_Told)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return ()
    single = told.model_sha or told.weight_version
    return (single,) if single else told.versions
