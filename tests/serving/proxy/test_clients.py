"""What clients do that is odd but right."""

import asyncio
import json
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from tests.serving.proxy.backend import (
    STREAM_HEAD,
    Backend,
    answer,
    backends,
    chunked,
    event,
    stream,
)
from tests.serving.proxy.raw import Raw, chat, raw
from tests.serving.running import RunningRouter, ask, running_router, until
from tests.serving.tap import free_port

PATH = "/v1/chat/completions"
NAMES = ["/data/Qwen3", "org/model@1:latest", "模型 7B"]
OPTIONS = {"hedge": {"enabled": False}}


async def slowly(_: Backend, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(0.5)
    writer.write(answer(b'{"object":"late"}'))


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[RunningRouter, Backend]]:
    with backends(1) as (backend,):
        models = {name: {"endpoints": [{"url": backend.url}], **OPTIONS} for name in ("m", *NAMES)}
        with running_router({"models": models}) as router:
            yield router, backend


def ended(client: Raw, request: bytes) -> bytes:
    client.send(request)
    client.connection.shutdown(socket.SHUT_WR)
    return client.rest()


def test_a_client_that_has_shut_down_its_sending_side_is_answered(
    served: tuple[RunningRouter, Backend],
) -> None:
    router, backend = served
    backend.do(slowly)
    with raw(router.port) as client:
        got = ended(client, chat())
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    assert got.startswith(interim)
    assert got.count(interim) <= 2
    assert got.replace(interim, b"").startswith(b"HTTP/1.1 200 ")
    assert got.endswith(b'{"object":"late"}')
    assert b"connection: close" in got
    with raw(router.port) as client:
        got = ended(client, chat() + chat() + b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
    assert got.count(b"HTTP/1.1 200 ") == 3
    backend.say(stream(3), pause_s=0.1)
    with raw(router.port) as client:
        got = ended(client, chat(stream=True))
    assert event(2) in got
    assert got.endswith(b"\r\n0\r\n\r\n")


@pytest.mark.parametrize(("version", "first"), [("1.0", b" 200 "), ("1.1", b" 100 ")])
def test_an_old_client_gets_no_interim_answer(
    served: tuple[RunningRouter, Backend], version: str, first: bytes
) -> None:
    """RFC 9110, 10.1.1: it may take it for the answer."""
    router, backend = served
    backend.say(answer())
    head, end, body = chat(version=version, fields="Expect: 100-continue\r\n").partition(
        b"\r\n\r\n"
    )
    with raw(router.port) as client:
        client.send(head + end)
        time.sleep(0.2)
        client.send(body)
        assert first in client.until(b"\r\n")


def test_a_client_that_left_within_its_pipeline_is_no_error_of_ours(
    served: tuple[RunningRouter, Backend],
) -> None:
    router, backend = served
    backend.say(answer())
    before = router.log.count('"level":"error"')
    for attempt in range(300):  # it must leave while its first answer is written
        first = chat() if attempt % 2 else b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
        with socket.create_connection(("127.0.0.1", router.port), 5) as left:
            left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            left.sendall(first + b"POST / HTP/1.1\r\n\r\n")
            time.sleep((0, 0.001, 0.003)[attempt % 3])
    assert router.post(b'{"model":"m","messages":[]}')[0] == 200
    time.sleep(0.5)  # for the log's thread
    assert router.log.count('"level":"error"') == before


def test_a_client_that_is_gone_is_still_seen(served: tuple[RunningRouter, Backend]) -> None:
    router, backend = served

    async def never(_: Backend, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    backend.do(never)
    backend.asked.clear()
    for _ in range(5):
        with raw(router.port) as client:
            client.send(chat())
            until(lambda: len(backend.asked) > 0)
            seen = backend.asked[-1]
        until(lambda seen=seen: seen.left)  # type: ignore[misc]
        backend.asked.clear()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("begun", [True, False])
def test_a_client_that_is_gone_is_seen_before_the_endpoint_writes(
    served: tuple[RunningRouter, Backend], version: str, begun: bool
) -> None:
    """It closes with nothing unread, as proxies do when their own client has left."""
    router, backend = served

    async def silent(_: Backend, writer: asyncio.StreamWriter) -> None:
        if begun:
            writer.write(STREAM_HEAD + chunked(event(0)))
        await asyncio.sleep(60)

    backend.do(silent)
    backend.asked.clear()
    with raw(router.port) as client:
        client.send(chat(stream=True, version=version))
        if begun:
            client.until(event(0))
            client.connection.settimeout(0.2)
            with pytest.raises(TimeoutError):
                client.connection.recv(1 << 16)
        until(lambda: len(backend.asked) > 0)
    until(lambda: backend.asked[0].left)


def test_a_request_that_is_cut_off_is_none(served: tuple[RunningRouter, Backend]) -> None:
    router, backend = served
    backend.say(answer())
    backend.asked.clear()
    with raw(router.port) as client:
        assert ended(client, chat()[:-1]) == b""
    assert backend.asked == []


def test_nginxs_way_can_be_had() -> None:
    with backends(1) as (backend,):
        backend.do(slowly)
        config = {
            "models": {"m": {"endpoints": [{"url": backend.url}], **OPTIONS}},
            "limits": {"half_closed": "cancel"},
        }
        with running_router(config) as router, raw(router.port) as client:
            assert ended(client, chat()) == b""


@pytest.mark.parametrize("name", NAMES)
def test_names_are_as_endpoints_have_them(served: tuple[RunningRouter, Backend], name: str) -> None:
    from urllib.parse import quote

    router, backend = served
    backend.say(answer())
    assert router.post(json.dumps({"model": name}).encode())[0] == 200
    for path in {quote(name, safe=""), quote(name)}:
        status, body = ask(router.name, "GET", f"/v1/models/{path}")
        assert (status, json.loads(body)["id"]) == (200, name)
    listed = json.loads(ask(router.name, "GET", "/v1/models")[1])["data"]
    assert {each["id"] for each in listed} == {"m", *NAMES}


def test_a_path_that_is_nearly_right_is_told_the_right_one(
    served: tuple[RunningRouter, Backend],
) -> None:
    router, _ = served
    for path in ("//v1/chat/completions", f"{PATH}/", "/chat/completions", f"/v1{PATH}"):
        status, body = ask(router.name, "POST", path, b"{}")
        assert status == 404
        assert f"the path is {PATH}" in json.loads(body)["error"]["message"]
    status, body = ask(router.name, "POST", "/v2/else", b"{}")
    assert "the path is" not in json.loads(body)["error"]["message"]


def test_a_body_without_a_model_goes_to_the_only_one(
    served: tuple[RunningRouter, Backend],
) -> None:
    router, backend = served
    backend.say(answer())
    status, body = router.post(b'{"messages":[]}')
    assert status == 400
    assert "names no model" in json.loads(body)["error"]["message"]
    models = {"only": {"endpoints": [{"url": backend.url}], **OPTIONS}}
    with running_router({"models": models}) as alone:
        backend.asked.clear()
        assert alone.post(b'{"messages":[]}')[0] == 200
        assert backend.asked[-1].body == b'{"messages":[]}'


def test_it_is_not_ready_before_an_endpoint_was_seen() -> None:
    """For 0.05 to 0.64 s it said that it was, whatever became of its endpoints."""
    nobody = {"models": {"m": {"endpoints": [{"url": f"http://127.0.0.1:{free_port()}"}]}}}
    with running_router(nobody) as router:
        for name in (router.name, router.admin):
            assert ask(name, "GET", "/ready")[0] == 503
    with backends(1) as (backend,):
        config = {"models": {"m": {"endpoints": [{"url": backend.url}], **OPTIONS}}}
        said: list[int] = []
        with running_router(config) as router:

            def is_ready() -> bool:
                said.append(ask(router.name, "GET", "/ready")[0])
                return said[-1] == 200

            until(is_ready)
        assert set(said) <= {200, 503}


def test_what_asks_whether_it_is_ready_needs_no_key() -> None:
    with backends(2) as (one, two):
        models = {
            "a": {"endpoints": [{"url": one.url}], **OPTIONS},
            "b": {"endpoints": [{"url": two.url}], **OPTIONS},
        }
        tenants = {"t": {"keys": ["env:KEY_OF_T"]}}
        config = {"models": models, "tenants": tenants}
        with running_router(config, env={"KEY_OF_T": "sk-" + "x" * 40}) as router:
            for path in ("/health", "/healthz", "/livez", "/ready", "/readyz"):
                until(lambda path=path: ask(router.name, "GET", path)[0] == 200)  # type: ignore[misc]
                assert ask(router.name, "HEAD", path) == (200, b"")
            assert ask(router.name, "GET", "/v1/models")[0] == 401
            one.stop()
            until(lambda: b"missing" in ask(router.name, "GET", "/readyz")[1])
            status, body = ask(router.name, "GET", "/readyz")
            assert status == 200
            assert list(json.loads(body)["missing"]) == ["a"]
            two.stop()
            until(lambda: ask(router.name, "GET", "/readyz")[0] == 503)
            missing = json.loads(ask(router.name, "GET", "/ready")[1])["missing"]
            assert set(missing) == {"a", "b"}
            assert one.name in missing["a"]
            assert ask(router.name, "GET", "/livez")[0] == 200
            name = router.admin
            until(lambda: ask(name, "GET", "/readyz")[0] == 503)
            assert b"model a: " in ask(name, "GET", "/ready")[1]
            one.start()
            until(lambda: ask(router.name, "GET", "/ready")[0] == 200, 60)
            until(lambda: ask(name, "GET", "/ready")[0] == 200, 60)


def test_a_url_may_end_in_v1() -> None:
    """As OpenAI's base URLs do; requests, health checks and readiness go to the same server."""
    with backends(1) as (backend,):
        models = {"m": {"endpoints": [{"url": f"{backend.url}/v1", "runtime": "vllm"}], **OPTIONS}}
        with running_router({"models": models}) as router:
            until(lambda: ask(router.name, "GET", "/ready")[0] == 200)
            assert router.post(b'{"model":"m","messages":[]}')[0] == 200
            assert backend.asked[-1].lines[0] == f"POST {PATH} HTTP/1.1"
            time.sleep(1.2)
            assert "waiting for" not in router.log, "health checks go elsewhere"


def test_it_says_which_endpoints_it_waits_for() -> None:
    with backends(2) as (up, late):
        late.stop()
        models = {"m": {"endpoints": [{"url": up.url}, {"url": late.url, "name": "late"}]}}
        with running_router({"models": models}) as router:
            until(lambda: "waiting for 1 of 2 endpoints: late (no connection: " in router.log)
            late.start()
            until(lambda: "all endpoints answer" in router.log)
