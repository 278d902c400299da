"""Adapters and servers of their protocols over real sockets."""

import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.serving.adapters.speech import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    body,
    reason_of,
    text_of,
)
from tests.serving.fakes.servers import Fake, running, vector
from trainmesh.serving.adapters import AdapterError, adapter_for
from trainmesh.serving.config.types import EndpointConfig, Runtime

PATHS = {"triton": "", "kserve": "", "torchserve": "/predictions/m"}
ORDER = "one two three four"
REVERSED = " four three two one"


@pytest.fixture(scope="module", params=["triton", "kserve", "torchserve"])
def fake(request: pytest.FixtureRequest) -> Iterator[tuple[str, Fake]]:
    with running(request.param) as server:
        yield request.param, server


def answered(
    kind: str, server: Fake, path: bytes, *, model: str = "vllm", **request: Any
) -> tuple[int, bytes]:
    """Status and body as a client of the router would get them."""
    endpoint = EndpointConfig(url=server.url + PATHS[kind], runtime=Runtime(kind))
    adapter = adapter_for(endpoint, model)
    assert adapter is not None
    sent = adapter.outbound(path, body(path, **request))
    answer = adapter.inbound(sent, request_id="r", created_s=1)
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    try:
        headers = {"content-type": sent.content_type.decode()}
        connection.request("POST", sent.path.decode(), sent.body, headers)
        response = connection.getresponse()
        if response.status != 200:
            return answer.error(response.status, response.read())
        said = b""
        while data := response.read1(7):
            said += answer.body(data)
        return 200, said + answer.end()
    finally:
        connection.close()


def test_whole_answers(fake: tuple[str, Fake]) -> None:
    status, said = answered(*fake, COMPLETIONS, prompt=ORDER)
    assert status == 200
    assert json.loads(said)["choices"][0]["text"] == REVERSED
    _, said = answered(*fake, CHAT, max_tokens=2)
    assert json.loads(said)["choices"][0]["message"]["content"] == " assistant: hi"


def test_streams(fake: tuple[str, Fake]) -> None:
    _, said = answered(*fake, COMPLETIONS, prompt=ORDER, stream=True)
    assert (text_of(said), reason_of(said)) == (REVERSED, "stop")


def test_stops(fake: tuple[str, Fake]) -> None:
    for stream in (False, True):
        _, said = answered(*fake, COMPLETIONS, prompt=ORDER, stream=stream, stop=["two", "xx"])
        text = text_of(said) if stream else json.loads(said)["choices"][0]["text"]
        assert text == " four three "


def test_errors(fake: tuple[str, Fake]) -> None:
    for word, expected in (("FAIL", 500), ("BUSY", 503)):
        status, said = answered(*fake, COMPLETIONS, prompt=f"a {word}", stream=True)
        assert status == expected
        assert json.loads(said)["error"]["message"]


def test_tensorrt_llm_s_ensemble() -> None:
    with running("triton") as server:
        for stream in (False, True):
            sent = {"prompt": ORDER, "stream": stream, "temperature": 0, "seed": 1}
            _, said = answered("triton", server, COMPLETIONS, model="ensemble", **sent)
            text = text_of(said) if stream else json.loads(said)["choices"][0]["text"]
            assert text == REVERSED
        assert json.loads(
            answered("triton", server, COMPLETIONS, model="ensemble", prompt=ORDER, max_tokens=4)[1]
        )["choices"][0] == {
            "index": 0,
            "text": REVERSED,
            "logprobs": None,
            "finish_reason": "length",
        }


def test_a_stream_that_breaks_in_the_middle() -> None:
    with running("triton") as server:
        with pytest.raises(AdapterError, match="CUDA"):
            answered("triton", server, COMPLETIONS, prompt="a BREAK b", stream=True)
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            answered("triton", server, COMPLETIONS, prompt="a DIE b", stream=True)


@pytest.mark.parametrize("kind", ["triton", "kserve"])
def test_embeddings(kind: str) -> None:
    with running(kind) as server:
        _, said = answered(kind, server, EMBEDDINGS, model="embed", input=["ab", "cde"])
        got = [one["embedding"] for one in json.loads(said)["data"]]
        assert got == [vector("ab"), vector("cde")]
