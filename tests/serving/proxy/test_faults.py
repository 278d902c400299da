"""What clients see when endpoints fail."""

import asyncio
import json

import pytest

from tests.serving.proxy.backend import (
    STREAM_HEAD,
    Backend,
    answer,
    chunked,
    event,
)
from tests.serving.proxy.conftest import Routed
from tests.serving.proxy.raw import chat, raw
from tests.serving.running import until

ASK = b'{"model":"m","messages":[]}'


def answered(routed: Routed) -> bool:
    got = routed.router.post(ASK)
    assert got[0] == 200, (got, routed.router.log[-3000:])
    return True


@pytest.mark.parametrize("status", [429, 500, 501, 502, 503, 504, 507, 508, 529])
def test_an_endpoint_that_refuses_is_asked_instead_of_another(routed: Routed, status: int) -> None:
    for backend in routed.backends[:2]:
        backend.say(answer(b"{}", status))
    until(lambda: answered(routed) and all(one.asked for one in routed.backends))


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_what_is_wrong_with_a_request_is_no_fault(routed: Routed, status: int) -> None:
    for backend in routed.backends:
        backend.say(answer(b'{"error":1}', status))
    assert {routed.router.post(ASK) for _ in range(12)} == {(status, b'{"error":1}')}
    # A few are asked about elsewhere: an endpoint may be alone with what it says.
    assert 12 <= routed.asked() <= 12 + 10 + 2
    routed.backends[0].say(answer())
    assert {routed.router.post(ASK)[0] for _ in range(12)} <= {200, status}


def test_the_last_refusal_is_passed_on(routed: Routed) -> None:
    routed.one.say(answer(b'{"error":"full"}', 503, "Retry-After: 7\r\n"))
    with raw(routed.port) as client:
        client.send(chat("one"))
        status, fields, body = client.json()
    assert (status, fields["retry-after"], body) == (503, "7", b'{"error":"full"}')


def test_an_endpoint_that_dies_before_a_byte_costs_nothing(routed: Routed) -> None:
    async def die(_: Backend, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    for backend in routed.backends[1:]:
        backend.do(die)
    until(lambda: answered(routed) and all(one.asked for one in routed.backends))


def test_nobody_there_is_said_in_words(routed: Routed) -> None:
    routed.one.stop()
    try:
        status, body = routed.router.post(b'{"model":"one"}')
        assert status in (502, 503)
        assert routed.one.name in json.loads(body)["error"]["message"]
    finally:
        routed.one.start()


@pytest.mark.parametrize("in_chunk", [False, True])
def test_a_stream_that_breaks_ends_in_an_error_event(routed: Routed, in_chunk: bool) -> None:
    async def script(_: Backend, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunked(event(0)))
        if in_chunk:
            writer.write(chunked(event(1))[:-9])
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.transport.abort()

    routed.one.do(script)
    with raw(routed.port) as client:
        client.send(chat("one", stream=True))
        client.head()
        body = client.until(b"\r\n0\r\n\r\n")
        routed.one.say(answer())
        client.send(chat("one"))
        assert client.json()[0] == 200, "the connection goes on"
    assert body.startswith(chunked(event(0)))
    assert body.endswith(b"\r\n0\r\n\r\n")
    assert b"[DONE]" not in body
    error = json.loads(body.rpartition(b"data: ")[2].partition(b"\n\n")[0])["error"]
    assert error["code"] == "stream_interrupted"


@pytest.mark.parametrize(
    ("head", "last"),
    [
        (STREAM_HEAD, event(1)[:-1]),
        (STREAM_HEAD, event(1)[:-9]),
        (STREAM_HEAD, b"data: {"),
        (STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"), event(1)),
    ],
)
def test_a_stream_in_which_no_event_can_stand_is_cut(
    routed: Routed, head: bytes, last: bytes
) -> None:
    """Behind a part of an event ours would be read as its rest, and as garbage behind what is
    compressed: the client learns what it would have learned from the endpoint itself."""

    async def script(_: Backend, writer: asyncio.StreamWriter) -> None:
        writer.write(head + chunked(event(0)) + chunked(last))
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.transport.abort()

    routed.one.do(script)
    with raw(routed.port) as client:
        client.send(chat("one", stream=True))
        client.head()
        assert client.rest() == chunked(event(0)) + chunked(last)


@pytest.mark.parametrize("begun", [b"", chunked(b"{}")])
@pytest.mark.parametrize(
    ("first", "unit"),
    [(b"5;", b"a" * 50_000), (b"", b"0" * 50_000), (b"0\r\nx: ", b"a" * 50_000),
     (b"0\r\n", b"x: y\r\n" * 9000)],
)  # fmt: skip
def test_framing_without_end_ends(routed: Routed, begun: bytes, first: bytes, unit: bytes) -> None:
    sent = 0

    async def script(_: Backend, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + begun + first)
        for _repeat in range(2000):  # 100 MB
            writer.write(unit)
            await writer.drain()
            sent += len(unit)

    routed.one.do(script)
    with raw(routed.port) as client:
        client.send(chat("one"))
        status, _ = client.head()
        client.rest() if begun else client.until(b"}}")
    assert status == (200 if begun else 502)
    until(lambda: not routed.one.busy)
    assert sent < 30_000_000, "what sockets hold, three times"
    routed.one.say(answer(b'"2"'))
    assert routed.router.post(b'{"model":"one"}') == (200, b'"2"')


@pytest.mark.parametrize("status", ["099", "000", "042"])
def test_a_status_that_there_is_not_is_no_interim_one(routed: Routed, status: str) -> None:
    routed.one.say(f"HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\n{{}}".encode())
    assert routed.router.post(b'{"model":"one"}')[0] == 502


def test_what_is_compressed_is_not_held_to_look_for_an_error(routed: Routed) -> None:
    head = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")

    async def script(_: Backend, writer: asyncio.StreamWriter) -> None:
        writer.write(head + chunked(b"\x1f\x8b"))
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.transport.abort()

    routed.one.do(script)
    with raw(routed.port) as client:
        client.send(chat("one", stream=True))
        client.head()
        assert client.rest() == chunked(b"\x1f\x8b")


def test_a_document_that_breaks_is_cut(routed: Routed) -> None:
    routed.one.say(b'HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{"a":', then_close=True)
    with raw(routed.port) as client:
        client.send(chat("one"))
        client.head()
        assert client.rest() == b'{"a":'


def test_a_killed_endpoint_is_used_again_soon(routed: Routed) -> None:
    killed = routed.backends[2]
    killed.stop()
    assert {routed.router.post(ASK)[0] for _ in range(30)} == {200}
    killed.start()
    killed.asked.clear()

    def used() -> bool:
        assert routed.router.post(ASK)[0] == 200
        return len(killed.asked) > 3

    until(used, timeout_s=10)


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (chat("nobody"), 404, "model_not_found"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n{a}", 400,
         "invalid_json"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", 400,
         "invalid_value"),
        (b"GET /v1/chat/completions HTTP/1.1\r\nHost: x\r\n\r\n", 405, "method_not_allowed"),
        (b"GET /etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", 404, "unknown_url"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_told_why_and_the_connection_lives(
    routed: Routed, request_bytes: bytes, status: int, code: str
) -> None:
    with raw(routed.port) as client:
        client.send(request_bytes)
        got, _, body = client.json()
        assert (got, json.loads(body)["error"]["code"]) == (status, code)
        client.send(chat("one"))
        assert client.json()[0] == 200
    assert routed.asked() == 0


def test_a_body_that_is_too_large_is_refused_before_it_is_read(routed: Routed) -> None:
    with raw(routed.port) as client:
        client.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n"
        )
        assert client.json()[0] == 413
        assert client.rest() == b""
