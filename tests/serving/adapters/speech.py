"""What the tests of adapters share: asking one, feeding it, and reading OpenAI's answers."""

import json
from collections.abc import Iterable
from typing import Any

from trainmesh.serving.adapters import Adapter, Inbound, adapter_for
from trainmesh.serving.config.types import EndpointConfig, Runtime

CHAT = b"/v1/chat/completions"
COMPLETIONS = b"/v1/completions"
EMBEDDINGS = b"/v1/embeddings"


def adapter(runtime: Runtime, url: str = "http://h:8000", **more: Any) -> Adapter:
    made = adapter_for(EndpointConfig(url=url, runtime=runtime, **more), "m")
    assert made is not None
    return made


def ask(via: Adapter, path: bytes, **request: Any) -> Inbound:
    """The inbound side for a request, as the data path makes it."""
    sent = via.outbound(path, body(path, **request))
    return via.inbound(sent, request_id="r1", created_s=1_700_000_000)


def body(path: bytes, **request: Any) -> bytes:
    """A small valid request, and ``request`` over it."""
    whole: dict[str, Any] = {"model": "m"}
    if path == CHAT:
        whole["messages"] = [{"role": "user", "content": "hi"}]
    elif path == COMPLETIONS:
        whole["prompt"] = "hi"
    else:
        whole["input"] = "hi"
    return json.dumps({**whole, **request}).encode()


def feed(answer: Inbound, pieces: Iterable[bytes]) -> bytes:
    """All that the client gets; each return value must be whole events."""
    out = []
    for piece in [*pieces, None]:
        said = answer.end() if piece is None else answer.body(piece)
        if answer.streaming:
            assert said == b"" or said.endswith(b"\n\n")
        out.append(said)
    return b"".join(out)


def events(stream: bytes) -> list[Any]:
    """The events of a stream that ends as it must."""
    *data, done, nothing = stream.split(b"\n\n")
    assert (done, nothing) == (b"data: [DONE]", b"")
    assert all(one.startswith(b"data: ") for one in data)
    return [json.loads(one[6:]) for one in data]


def text_of(stream: bytes) -> str:
    """The text of a chat's or completion's stream."""
    parts = [event["choices"][0] for event in events(stream) if event["choices"]]
    return "".join(
        one["text"] if "text" in one else one["delta"].get("content", "") for one in parts
    )


def reason_of(stream: bytes) -> Any:
    """The finish reason, which must come once and last."""
    reasons = [event["choices"][0]["finish_reason"] for event in events(stream) if event["choices"]]
    assert reasons[:-1] == [None] * (len(reasons) - 1)
    return reasons[-1]
