"""Errors under status 200: tried elsewhere like any failed attempt, never a fast first byte."""

import json
from collections.abc import Iterator

import pytest

from tests.serving.abuse.wire import every_cut
from tests.serving.proxy.backend import (
    STREAM_HEAD,
    Backend,
    answer,
    backends,
    chunked,
    event,
    stream,
)
from tests.serving.proxy.raw import chat, raw
from tests.serving.running import RunningRouter, running_router, until
from trainmesh.serving.proxy.reading.first_event import GOOD, error_of, status_of

BAD = b'{"error":{"message":"CUDA error","type":"InternalServerError","code":500}}'
ERRORS = {
    "vLLM": (b"data: %s\n\n" % BAD, 500),
    "older vLLM": (b'data: {"object":"error","message":"died","code":500}\n\n', 500),
    "TGI": (b'data:{"error":"Request failed","error_type":"generation"}\n\n', 500),
    "llama.cpp": (b'error: {"code":503,"message":"Loading model"}\n\n', 503),
    "a response": (b'event: error\ndata: {"type":"error","message":"no"}\n\n', 500),
    "full": (b'data: { "error" : {"message":"busy","code":429}}\r\n\r\n', 429),
    "the client's": (b'data: {"error":{"type":"BadRequestError","message":"too long"}}\n\n', 400),
    "with an id": (b"id: 1\nretry: 5\nevent: x\ndata: %s\n\ndata: [DONE]\n\n" % BAD, 500),
}
GOOD_ONES = {
    "a chunk": event(0),
    "done": b"data: [DONE]\n\n",
    "a comment": b": ping\n\ndata: %s\n\n" % BAD,
    "no error": b'data: {"error":null,"choices":[]}\n\n',
    "a word": b'data: {"errors":3,"choices":[]}\n\n',
    "later": event(0) + b"data: %s\n\n" % BAD,
    "no JSON": b'data: {"error": oh\n\n',
    "text": b"data: error\n\n",
    "nothing": b"",
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_seen_however_it_is_cut(name: str) -> None:
    body, status = ERRORS[name]
    for pieces in every_cut(body):
        verdicts = [
            error_of(b"".join(pieces[: count + 1]), events=True, complete=False)
            for count in range(len(pieces))
        ]
        found = next(verdict for verdict in verdicts if verdict is not None)
        assert found != GOOD, pieces
        assert json.loads(found)
        assert status_of(found) == status


@pytest.mark.parametrize("name", GOOD_ONES)
def test_all_else_is_no_error(name: str) -> None:
    body = GOOD_ONES[name]
    for pieces in every_cut(body):
        for count in range(len(pieces)):
            verdict = error_of(b"".join(pieces[: count + 1]), events=True, complete=False)
            assert not verdict
    assert error_of(body, events=True, complete=True) == GOOD


def test_a_good_first_event_is_not_held_back() -> None:
    for name in ("a chunk", "done", "a comment"):
        first = GOOD_ONES[name].partition(b"\n\n")[0] + b"\n\n"
        assert error_of(first, events=True, complete=False) == GOOD


@pytest.mark.parametrize(
    ("body", "is_error"),
    [
        (BAD, True),
        (b'{\n  "error": "out of memory"\n}', True),
        (b'{"error": null, "object": "response"}', False),
        (b'{"object":"chat.completion","choices":[]}', False),
        (b"[]", False),
        (b'{"error":' + b" " * 70_000 + b"1}", False),
    ],
)
def test_documents(body: bytes, is_error: bool) -> None:
    assert bool(error_of(body, events=False, complete=True)) == is_error
    assert not error_of(body[:-1], events=False, complete=False)


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[RunningRouter, list[Backend]]]:
    with backends(4) as made:
        options = {"hedge": {"enabled": False}, "policy": "round_robin"}
        urls = [{"url": backend.url} for backend in made]
        models = {
            "m": {"endpoints": urls[:2], **options},
            "documents": {"endpoints": [urls[3], urls[1]], **options},
            "alone": {"endpoints": urls[2:3], **options},
        }
        with running_router({"models": models}) as router:
            yield router, made


def errs(body: bytes, *, length: bool = False) -> tuple[bytes, ...]:
    if length:
        return (answer(body, more="X-Engine: e\r\n"),)
    return (STREAM_HEAD + chunked(body), b"0\r\n\r\n")


@pytest.mark.parametrize("streamed", [True, False])
def test_it_is_tried_elsewhere_and_ejected(
    served: tuple[RunningRouter, list[Backend]], streamed: bool
) -> None:
    """It answers in no time, and would draw all requests; every client has a good answer."""
    router, (bad, good, _, other) = served
    model, bad = ("m", bad) if streamed else ("documents", other)
    well = stream(2) if streamed else answer()
    for backend in (bad, good):
        backend.say(well)
    until(lambda: all(in_use(router, model, backend) for backend in (bad, good)), 60)
    bad.say(*errs(b"data: %s\n\n" % BAD if streamed else BAD, length=not streamed))
    bad.asked.clear()
    for number in range(40):
        with raw(router.port) as client:
            client.send(chat(model, stream=streamed, fields=f"x-request-id: {number}\r\n"))
            status, fields = client.head()
            assert status == 200
            assert fields["x-trainmesh-endpoint"] == good.name
            if streamed:
                assert event(1) in client.until(b"\r\n0\r\n\r\n")
    first = [
        each for each in bad.asked if not (each.header("x-request-id") or "").endswith("-trial")
    ]
    assert 3 <= len(first) <= 20, "it is asked on and on"


def in_use(router: RunningRouter, model: str, backend: Backend) -> bool:
    router.post(json.dumps({"model": model, "messages": []}).encode())
    return bool(backend.asked)


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_with_nobody_left_to_ask_it_is_an_error_answer(
    served: tuple[RunningRouter, list[Backend]], version: str
) -> None:
    router, (_, _, alone, _) = served
    for name, (body, status) in ERRORS.items():
        alone.say(*errs(body))
        with raw(router.port) as client:
            client.send(chat("alone", stream=True, version=version))
            got, fields, said = client.json()
        assert got == status, name
        assert fields["content-type"] == "application/json"
        if b"data:" in body:
            told = body.partition(b"data:")[2].partition(b"\n")[0]
            assert json.loads(said) == json.loads(told)


def test_later_errors_and_good_streams_pass_byte_for_byte(
    served: tuple[RunningRouter, list[Backend]],
) -> None:
    router, (_, _, alone, _) = served
    for name, body in GOOD_ONES.items():
        if not body:
            continue
        alone.say(STREAM_HEAD + chunked(body[:9]), chunked(body[9:]) + b"0\r\n\r\n", pause_s=0.05)
        with raw(router.port) as client:
            client.send(chat("alone", stream=True))
            assert client.head()[0] == 200, name
            got = client.until(b"0\r\n\r\n")
        assert got == chunked(body[:9]) + chunked(body[9:]) + b"0\r\n\r\n"


def test_the_connection_can_be_used_again(served: tuple[RunningRouter, list[Backend]]) -> None:
    router, (_, _, alone, _) = served
    with raw(router.port) as client:
        for _ in range(3):
            alone.say(*errs(b"data: %s\n\ndata: [DONE]\n\n" % BAD))
            client.send(chat("alone", stream=True))
            assert client.json()[0] == 500
            alone.say(answer())
            client.send(chat("alone"))
            assert client.json()[2] == b'{"object":"chat.completion"}'
