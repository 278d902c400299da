"""Bytes from client to endpoint and back."""

import asyncio
import json

import pytest

from tests.serving.proxy.backend import (
    STREAM_HEAD,
    Backend,
    answer,
    chunked,
    event,
    stream,
)
from tests.serving.proxy.conftest import Routed
from tests.serving.proxy.raw import chat, raw
from tests.serving.running import until


def test_a_request_reaches_an_endpoint_as_it_was_sent(routed: Routed) -> None:
    sent = chat("one", fields="X-Mine: a\r\nAccept: */*\r\nConnection: x-gone\r\nX-Gone: b\r\n")
    with raw(routed.port) as client:
        client.send(sent)
        assert client.json()[0] == 200
    asked = routed.one.asked[0]
    assert asked.body == sent.partition(b"\r\n\r\n")[2]
    assert asked.header("x-mine") == "a"
    assert asked.header("host") == routed.one.name
    assert asked.header("x-gone") is None
    assert asked.header("connection") is None


def test_an_answer_reaches_the_client_as_it_was_sent(routed: Routed) -> None:
    body = '{"text":"éß  "}'.encode()
    routed.one.say(answer(body, more="X-Theirs: c\r\nConnection: keep-alive\r\n"))
    with raw(routed.port) as client:
        client.send(chat("one"))
        status, fields, got = client.json()
    assert (status, got) == (200, body)
    assert fields["x-theirs"] == "c"
    assert fields["x-trainmesh-endpoint"] == routed.one.name
    assert fields["x-trainmesh-request-id"] == routed.one.asked[0].header("x-request-id")
    assert "connection" not in fields


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 50, 100_000])
def test_a_stream_reaches_the_client_byte_for_byte(routed: Routed, cut: int) -> None:
    whole = stream(20)
    pieces = [whole[at : at + cut] for at in range(0, len(whole), cut)]
    routed.one.say(*pieces)
    with raw(routed.port) as client:
        client.send(chat("one", stream=True))
        _, fields = client.head()
        body = client.until(b"\r\n0\r\n\r\n")
    assert body == whole.partition(b"\r\n\r\n")[2]
    assert fields["transfer-encoding"] == "chunked"


def test_events_are_not_held_back(routed: Routed) -> None:
    async def script(_: Backend, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunked(event(0)))
        await asyncio.sleep(30)

    routed.one.do(script)
    with raw(routed.port) as client:
        client.send(chat("one", stream=True))
        client.head()
        assert client.until(b"\n\n\r\n") == chunked(event(0))


def test_a_connection_serves_one_request_after_another(routed: Routed) -> None:
    with raw(routed.port) as client:
        for _ in range(5):
            client.send(chat("one"))
            assert client.json()[0] == 200
        client.send(chat("one") * 3)
        for _ in range(3):
            assert client.json()[0] == 200
    assert len(routed.one.asked) == 8


def test_an_answer_without_length_is_chunked_for_http_1_1(routed: Routed) -> None:
    routed.one.say(b"HTTP/1.1 200 OK\r\n\r\nhello ", b"you", pause_s=0.02, then_close=True)
    with raw(routed.port) as client:
        client.send(chat("one"))
        _, fields = client.head()
        assert fields["transfer-encoding"] == "chunked"
        assert client.until(b"0\r\n\r\n").replace(b"\r\n", b"").endswith(b"you0")


def test_http_1_0_gets_no_chunks(routed: Routed) -> None:
    routed.one.say(stream(3))
    with raw(routed.port) as client:
        client.send(chat("one", stream=True, version="1.0"))
        _, fields = client.head()
        assert client.rest() == b"".join(map(event, range(3))) + b"data: [DONE]\n\n"
    assert "transfer-encoding" not in fields


def test_informational_answers_are_skipped(routed: Routed) -> None:
    routed.one.say(b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + answer(b"{}"))
    with raw(routed.port) as client:
        client.send(chat("one"))
        status, fields, body = client.json()
    assert (status, body) == (200, b"{}")
    assert "link" not in fields


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize(
    "excess",
    [answer(b'"stolen"'), answer(b'"stolen"', 500), b"\r\n\r\n", b"garbage", b"\0", b"HTTP/1.1 1"],
)
def test_a_second_answer_is_nobodys(routed: Routed, version: str, excess: bytes) -> None:
    """The first is the client's whether or not more has come with it."""
    routed.one.say(answer(b'"1"') + excess)
    for _ in range(2):
        with raw(routed.port) as client:
            client.send(chat("one", version=version))
            status, _, body = client.json()
        assert (status, body) == (200, b'"1"')
    routed.one.say(b"HTTP/1.1 204 No Content\r\n\r\n" + excess)
    with raw(routed.port) as client:
        client.send(chat("one", version=version))
        assert client.head()[0] == 204
    routed.one.say(answer(b'"2"'))
    assert routed.router.post(b'{"model":"one"}') == (200, b'"2"')


def test_an_answer_in_chunks_with_another_behind_it_is_refused(routed: Routed) -> None:
    routed.one.say(stream(1) + answer(b'"stolen"'))
    with raw(routed.port) as client:
        client.send(chat("one"))
        status, _, body = client.json()
    assert status == 502
    assert b"more than one answer" in body
    routed.one.say(answer(b'"2"'))
    until(lambda: routed.router.post(b'{"model":"one"}') == (200, b'"2"'))


def test_100_continue(routed: Routed) -> None:
    head, _, body = chat("one", fields="Expect: 100-continue\r\n").partition(b"\r\n\r\n")
    with raw(routed.port) as client:
        client.send(head + b"\r\n\r\n")
        assert client.head()[0] == 100
        client.send(body)
        assert client.json()[0] == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_seen_by_the_endpoint(routed: Routed, stream: bool) -> None:
    async def script(_: Backend, writer: asyncio.StreamWriter) -> None:
        if stream:
            writer.write(STREAM_HEAD + chunked(event(0)))
        await asyncio.sleep(30)

    routed.one.do(script)
    for count in range(1, 21):
        with raw(routed.port) as client:
            client.send(chat("one", stream=stream))
            if stream:
                client.until(b"\n\n\r\n")
            else:
                until(lambda count=count: len(routed.one.asked) >= count, what="not asked")  # type: ignore[misc]
    until(lambda: sum(asked.left for asked in routed.one.asked) == 20, what="not all seen")


def test_large_bodies_pass(routed: Routed) -> None:
    text = "x" * 900_000
    body = json.dumps({"model": "one", "prompt": text}).encode()
    routed.one.say(answer(b'"' + b"y" * 3_000_000 + b'"'))
    status, got = routed.router.post(body)
    assert status == 200
    assert len(got) == 3_000_002
    assert routed.one.asked[0].body == body


def test_a_slow_client_does_not_fill_our_memory(routed: Routed) -> None:
    piece = chunked(b"data: " + b"z" * 60_000 + b"\n\n")

    written = 0

    async def script(_: Backend, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(STREAM_HEAD)
        for number in range(500):
            writer.write(piece)
            await writer.drain()
            written = number
        writer.write(b"0\r\n\r\n")

    routed.one.do(script)
    before = routed.router.rss_bytes()
    with raw(routed.port) as client:
        client.send(chat("one", stream=True))
        client.head()
        until(lambda: written > 5)
        client.silent(0.5)
        assert routed.router.rss_bytes() - before < 20_000_000
        assert written < 400
        left = 500 * len(piece) + 5
        while left:
            left -= len(client.some())


def test_connections_to_endpoints_are_used_again(routed: Routed) -> None:
    before = routed.one.connections
    for _ in range(10):
        assert routed.router.post(b'{"model":"one"}')[0] == 200
    assert routed.one.connections - before <= 5, "only health checks open new ones"


def test_a_connection_that_a_slow_client_paused_serves_the_next_one(routed: Routed) -> None:
    """The last piece of some of these fills the client's buffers, when the endpoint is done."""
    for size in range(200_000, 6_000_000, 200_000):
        routed.one.say(answer(b"y" * size))
        with raw(routed.port) as slow:
            slow.send(chat("one"))
            slow.head()
            until(lambda: not routed.one.busy)
            routed.one.say(answer(b'"next"'))
            assert routed.router.post(b'{"model":"one"}') == (200, b'"next"'), size
