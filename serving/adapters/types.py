"""What lies between OpenAI's API and an endpoint that speaks another one. Nothing here does I/O.

For each attempt the data path asks::

    adapter = adapter_for(endpoint, model)       # None: bytes go as they are, to upstream_path(...)
    sent = adapter.outbound(path, body)          # Unsupported -> 400 that names the parameter
    answer = adapter.inbound(sent, request_id=..., created_s=...)
    status 2xx:  answer.body(data) ... answer.end()      # AdapterError -> as a broken endpoint
    otherwise:   answer.error(status, whole_body)
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from msgspec import Struct

from trainmesh.errors import TrainmeshError

__all__ = [
    "Adapter",
    "AdapterError",
    "Call",
    "EmbeddingCall",
    "Inbound",
    "Outbound",
    "Sampling",
    "TextCall",
    "Unsupported",
    "Usage",
]


class AdapterError(TrainmeshError):
    """The endpoint's answer makes no sense, or is an error that came with status 200."""


class Unsupported(TrainmeshError):
    """The endpoint's protocol can't do what the request asks; ``param`` names the parameter."""

    def __init__(self, param: str, why: str) -> None:
        super().__init__(f"{param}: {why}" if param else why)
        self.param = param
        self.why = why


class Sampling(Struct, frozen=True, kw_only=True):
    """How text is generated. ``None``: the endpoint's own default."""

    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


class TextCall(Struct, frozen=True, kw_only=True):
    """A completion; a chat is already one prompt. ``model``: as the client named it."""

    model: str
    chat: bool
    prompt: str
    sampling: Sampling
    stream: bool = False
    include_usage: bool = False
    """Tokens are to be told at the end of a stream too."""


class EmbeddingCall(Struct, frozen=True, kw_only=True):
    """Texts to be turned into vectors, in base64 (little-endian float32) or as numbers."""

    model: str
    inputs: tuple[str, ...]
    base64: bool = False


Call = TextCall | EmbeddingCall


class Usage(NamedTuple):
    """Tokens as the engine counted them."""

    prompt_tokens: int
    completion_tokens: int


class Outbound(NamedTuple):
    """A request for the endpoint: POST ``body`` to ``path``."""

    path: bytes
    body: bytes
    content_type: bytes
    call: Call


class Inbound(Protocol):
    """The answer of one attempt on its way back."""

    streaming: bool
    """The client gets ``text/event-stream`` (else one JSON document)."""
    done: bool
    """The client has all it asked for though the endpoint still talks: close it. What is fed from
    here on is dropped, and ``end`` has nothing to add."""

    def body(self, data: bytes) -> bytes:
        """Bytes of the endpoint's body (without chunk framing), cut anywhere, to bytes for the
        client: complete SSE events, or ``b""`` to wait.

        Raises:
            AdapterError: the answer makes no sense, or is too large.
        """
        ...

    def end(self) -> bytes:
        """The rest, after the endpoint's last byte: the document, or the last events and
        ``[DONE]``.

        Raises:
            AdapterError: the answer makes no sense, or is not complete.
        """
        ...

    def error(self, status: int, body: bytes) -> tuple[int, bytes]:
        """An answer that is not 2xx as status and an error document of OpenAI's form."""
        ...


class Adapter(Protocol):
    """How one endpoint is asked for one model."""

    def outbound(self, path: bytes, body: bytes) -> Outbound:
        """Translate a request to ``path`` (``/v1/...``, without query).

        Raises:
            Unsupported: the endpoint can't answer it, or the body is not a valid request.
        """
        ...

    def inbound(self, sent: Outbound, *, request_id: str, created_s: int) -> Inbound:
        """The other direction, for one attempt.

        Args:
            sent: what ``outbound`` returned for it.
            request_id: becomes a part of the answer's ``id``.
            created_s: Unix time for the answer's ``created``.
        """
        ...
