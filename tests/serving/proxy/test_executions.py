"""How often a request is executed, and how long a silent stream is kept."""

import asyncio
import json
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.serving.proxy.backend import STREAM_HEAD, Backend, answer, backends, chunked, event
from tests.serving.proxy.raw import chat, raw
from tests.serving.running import RunningRouter, ask, running_router, until

OPTIONS = {"hedge": {"enabled": False}}


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[RunningRouter, list[Backend]]]:
    with backends(3) as made:
        every = [{"url": each.url} for each in made]
        both = every[:2]
        models = {
            "one": {"endpoints": both[:1], **OPTIONS},
            "three": {
                "endpoints": every,
                "policy": "round_robin",
                "retry": {"attempts": 3},
                **OPTIONS,
            },
            "once": {"endpoints": both[:1], "retry": {"attempts": 1}, **OPTIONS},
            "two": {"endpoints": both, **OPTIONS},
            "noted": {"endpoints": both[:1], "keepalive_s": 0.5, **OPTIONS},
        }
        limits = {"silence_timeout_s": 4}
        with running_router({"models": models, "limits": limits}) as router:
            yield router, made


def body_of(model: str, **more: object) -> bytes:
    return json.dumps({"model": model, "messages": [], **more}).encode()


def works(served: tuple[RunningRouter, list[Backend]], model: str) -> None:
    router, made = served
    for backend in made:
        backend.say(answer())
    until(lambda: router.post(body_of(model))[0] == 200)
    for backend in made:
        backend.asked.clear()


def all_asked(made: list[Backend], model: str) -> bool:
    return all(backend.asked for backend in (made if model == "three" else made[:1]))


def test_one_endpoint_executes_a_request_once(served: tuple[RunningRouter, list[Backend]]) -> None:
    works(served, "one")
    router, (backend, *_) = served
    for _ in range(3):
        time.sleep(2.2)  # longer than an endpoint may be left alone
        assert router.post(body_of("one", max_tokens=500))[0] == 200
    assert len(backend.asked) == 3


def test_copies_go_elsewhere_and_cost_little(served: tuple[RunningRouter, list[Backend]]) -> None:
    works(served, "two")
    router, (*made, _) = served
    for _ in range(40):
        assert router.post(body_of("two", max_tokens=500))[0] == 200
        time.sleep(0.1)
    asked = [each for backend in made for each in backend.asked]
    copies = [each for each in asked if (each.header("x-request-id") or "").endswith("-trial")]
    # A burst of four ordinary requests, and 2 % of 40.
    assert len(copies) <= 4 + 1
    for backend in made:
        ids = [each.header("x-request-id") or "" for each in backend.asked]
        assert not {name.removesuffix("-trial") for name in ids if name.endswith("-trial")} & set(
            ids
        )


@pytest.mark.parametrize(("model", "attempts"), [("three", 3), ("once", 1)])
def test_a_reset_after_the_request_was_read_counts(
    served: tuple[RunningRouter, list[Backend]], model: str, attempts: int
) -> None:
    router, made = served
    for _ in range(3):
        works(served, model)
        until(lambda: router.post(body_of(model))[0] == 200 and all_asked(made, model))
        for backend in made:  # each has a connection that is kept
            backend.asked.clear()

        async def resets(_: Backend, writer: asyncio.StreamWriter) -> None:
            writer.transport.abort()

        for backend in made:
            backend.do(resets)
        request_id = f"reset-{model}-{time.monotonic_ns()}"
        with raw(router.port) as client:
            client.send(chat(model, fields=f"X-Request-Id: {request_id}\r\n"))
            assert client.json()[0] == 502
        ids = [each.header("x-request-id") for backend in made for each in backend.asked]
        assert len(ids) == attempts
        assert len(set(ids)) == 1
        assert (ids[0] or "").startswith(f"{request_id}-")


def test_a_closed_idle_connection_costs_nobody_anything(
    served: tuple[RunningRouter, list[Backend]],
) -> None:
    """Also with one attempt: then none is used that may be closed any moment."""
    works(served, "once")
    router, (backend, *_) = served

    async def closes(_: Backend, writer: asyncio.StreamWriter) -> None:
        writer.write(answer())
        await writer.drain()
        asyncio.get_running_loop().call_later(1.5, writer.close)

    backend.do(closes)
    for _ in range(3):
        assert router.post(body_of("once"))[0] == 200
        time.sleep(1.499)
        assert router.post(body_of("once"))[0] == 200
    assert len(backend.asked) == 6


def test_endpoints_that_close_a_connection_on_its_second_request_lose_none(
    served: tuple[RunningRouter, list[Backend]],
) -> None:
    """Each attempt over a kept connection is lost, so the last one is over a new one."""
    works(served, "three")
    router, made = served
    used: set[asyncio.StreamWriter] = set()

    async def once(_: Backend, writer: asyncio.StreamWriter) -> None:
        if writer in used:
            writer.transport.abort()
        else:
            used.add(writer)
            writer.write(answer())

    for backend in made:
        backend.do(once)
    assert [router.post(body_of("three"))[0] for _ in range(30)] == [200] * 30
    assert len(used) < sum(len(backend.asked) for backend in made), "no connection was kept"


def test_a_silent_stream_is_kept_and_its_endpoint_not_blamed(
    served: tuple[RunningRouter, list[Backend]],
) -> None:
    works(served, "one")
    router, (backend, *_) = served

    async def thinks(_: Backend, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunked(event(0)))
        await asyncio.sleep(2.5)
        writer.write(chunked(event(1)) + b"0\r\n\r\n")

    backend.do(thinks)
    for model, between in (("one", 0), ("noted", 2)):
        with raw(router.port) as client:
            client.send(chat(model, stream=True))
            client.head()
            got = client.until(b"\r\n0\r\n\r\n")
        assert chunked(event(0)) in got
        assert chunked(event(1)) in got
        comments = got.count(chunked(b": keep-alive\n\n"))
        assert between <= comments <= between + 2 if between else comments == 0
        assert len(got) == len(
            chunked(event(0)) + chunked(event(1)) + b"0\r\n\r\n"
        ) + comments * len(chunked(b": keep-alive\n\n"))


@pytest.mark.parametrize("came", [b"", b"1\r\n:", b"f\r\nevent: message\n\r\n"])
def test_a_stream_is_kept_open_before_its_first_event_too(
    served: tuple[RunningRouter, list[Backend]], came: bytes
) -> None:
    """Also where a part of the first event, or of its chunk, has come."""
    works(served, "noted")
    router, (backend, *_) = served
    rest = (STREAM_HEAD + came + (b"\r\n" if came.endswith(b":") else b"")).partition(b"\r\n\r\n")
    body = rest[2] + chunked(event(1)) + b"0\r\n\r\n"

    async def thinks(_: Backend, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + came)
        await asyncio.sleep(2.5)
        writer.write(body[len(came) :])

    backend.do(thinks)
    with raw(router.port) as client:
        client.send(chat("noted", stream=True))
        begun_s = time.monotonic()
        assert client.head()[0] == 200
        waited_s = time.monotonic() - begun_s
        got = client.until(b"\r\n0\r\n\r\n")
    comment = chunked(b": keep-alive\n\n")
    count = got.count(comment)
    assert waited_s < 2.4, "the head came with the first event"
    assert 2 <= count <= 5
    assert got == comment * count + body


@pytest.mark.parametrize("head", [STREAM_HEAD, STREAM_HEAD.replace(b"Transfer", b"X-Transfer")])
def test_a_stream_over_http_1_0_is_kept_open_and_its_break_told(
    served: tuple[RunningRouter, list[Backend]], head: bytes
) -> None:
    """Its client gets no chunks, whether the endpoint sends them or not."""
    works(served, "noted")
    router, (backend, *_) = served
    is_chunked = head is STREAM_HEAD
    first = event(1)

    async def breaks(_: Backend, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        await asyncio.sleep(1.5)
        writer.write(chunked(first) if is_chunked else first)
        await asyncio.sleep(1.5)
        reset = struct.pack("ii", 1, 0)  # a plain end would be the end of an answer without length
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        writer.transport.abort()

    backend.do(breaks)
    with raw(router.port) as client:
        client.send(chat("noted", stream=True, version="1.0"))
        assert client.head()[0] == 200
        got = client.rest()
    before, between, after = got.partition(first)
    assert between
    for silence in (before, after):
        assert silence.count(b": keep-alive\n\n") >= 1
    assert not before.replace(b": keep-alive\n\n", b"")
    told = after.replace(b": keep-alive\n\n", b"")
    assert told.startswith(b"data: {")
    assert told.endswith(b"}\n\n")
    assert b"stream_interrupted" in told


def test_a_comment_of_ours_is_no_first_byte(
    served: tuple[RunningRouter, list[Backend]],
) -> None:
    """An endpoint is as slow as its own first byte, however early its client was told something."""
    works(served, "noted")
    router, (backend, *_) = served

    async def thinks(_: Backend, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        await asyncio.sleep(2.5)
        writer.write(chunked(event(1)) + b"0\r\n\r\n")

    def total(name: str) -> float:
        page = ask(router.admin, "GET", "/metrics")[1].decode()
        wanted = f"trainmesh_serve_endpoint_{name}_total{{"
        lines = [line for line in page.splitlines() if line.startswith(wanted)]
        return sum(float(line.split()[-1]) for line in lines if 'model="noted"' in line)

    before, before_s = total("first_bytes"), total("first_byte_seconds")
    backend.do(thinks)
    with raw(router.port) as client:
        client.send(chat("noted", stream=True))
        client.until(b"\r\n0\r\n\r\n")
    until(lambda: total("first_byte_seconds") - before_s >= 2.5)
    assert total("first_bytes") - before == 1


def test_a_stream_that_stays_silent_ends_and_its_endpoint_is_not_ejected(
    served: tuple[RunningRouter, list[Backend]],
) -> None:
    works(served, "one")
    router, (backend, *_) = served

    async def falls_silent(_: Backend, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunked(event(0)))
        await asyncio.sleep(60)

    backend.do(falls_silent)
    with ExitStack() as stack:
        opened = [stack.enter_context(raw(router.port)) for _ in range(4)]
        for client in opened:
            client.send(chat("one", stream=True))
        for client in opened:
            client.head()
            assert b"nothing came for 4 s" in client.until(b"\r\n0\r\n\r\n")
    assert "ejected" not in router.log
    assert ask(router.name, "GET", "/health")[0] == 200
    works(served, "one")
