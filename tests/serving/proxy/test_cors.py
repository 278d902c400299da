"""Web pages of other origins: what browsers ask and need to be told (Fetch Standard, 3.3)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.serving.proxy.backend import Backend, answer, backends, stream
from tests.serving.proxy.raw import chat, raw
from tests.serving.running import RunningRouter, running_router

KEY = "sk-" + "k" * 40
APP = "https://app.example"
PATH = "/v1/chat/completions"
ITS_OWN = "Access-Control-Allow-Origin: *\r\nAccess-Control-Expose-Headers: secret\r\n"


@contextmanager
def router_with(
    cors: dict[str, Any] | None, *, keys: bool = True
) -> Iterator[tuple[RunningRouter, Backend]]:
    with backends(1) as (backend,):
        config: dict[str, Any] = {
            "models": {"m": {"endpoints": [{"url": backend.url}], "hedge": {"enabled": False}}}
        }
        if keys:
            config["tenants"] = {"t": {"keys": ["env:KEY_OF_T"]}}
        if cors is not None:
            config["cors"] = cors
        with running_router(config, env={"KEY_OF_T": KEY}) as router:
            yield router, backend


@pytest.fixture(scope="module")
def named() -> Iterator[tuple[RunningRouter, Backend]]:
    with router_with({"origins": [APP], "credentials": True, "max_age_s": 7}) as found:
        yield found


@pytest.fixture(scope="module")
def anyone() -> Iterator[tuple[RunningRouter, Backend]]:
    """Without keys, so that pages of other hosts are refused unless cors says otherwise."""
    cors = {"origins": ["*"], "headers": ["Authorization"], "expose_headers": ["x-a", "x-b"]}
    with router_with(cors, keys=False) as found:
        yield found


@pytest.fixture(scope="module")
def off() -> Iterator[tuple[RunningRouter, Backend]]:
    with router_with(None) as found:
        yield found


def preflight(path: str = PATH, origin: str = APP, version: str = "1.1") -> bytes:
    head = f"OPTIONS {path} HTTP/{version}\r\nHost: x\r\nOrigin: {origin}\r\n"
    asked = "authorization,content-type, x-stainless-os"
    return (
        f"{head}Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: {asked}"
        "\r\n\r\n"
    ).encode()


def got(router: RunningRouter, request: bytes) -> tuple[int, dict[str, list[str]]]:
    """Status and all fields; the connection must be usable for another request."""
    with raw(router.port) as client:
        client.send(request)
        lines = client.until(b"\r\n\r\n").decode().split("\r\n")
    fields: dict[str, list[str]] = {}
    for line in lines[1:]:
        if line:
            name, _, value = line.partition(": ")
            fields.setdefault(name.lower(), []).append(value)
    return int(lines[0].split()[1]), fields


def key(value: str = KEY, origin: str = APP) -> str:
    return f"Origin: {origin}\r\nAuthorization: Bearer {value}\r\n"


@pytest.mark.parametrize("path", [PATH, "/v1/models", "/nowhere", "/health"])
def test_a_preflight_needs_no_key_and_reaches_no_endpoint(
    named: tuple[RunningRouter, Backend], path: str
) -> None:
    router, backend = named
    backend.asked.clear()
    status, fields = got(router, preflight(path))
    assert status == 204
    assert fields["access-control-allow-origin"] == [APP]
    assert fields["access-control-allow-credentials"] == ["true"]
    assert fields["access-control-allow-methods"] == ["GET, POST"]
    assert fields["access-control-allow-headers"] == ["authorization,content-type, x-stainless-os"]
    assert fields["access-control-max-age"] == ["7"]
    assert "origin" in fields["vary"]
    assert "content-length" not in fields
    assert backend.asked == []


def test_requests_go_on_behind_a_preflight(named: tuple[RunningRouter, Backend]) -> None:
    router, backend = named
    backend.say(answer())
    with raw(router.port) as client:
        client.send(preflight() + chat(fields=key()) + preflight())
        assert [client.head()[0], client.json()[0], client.head()[0]] == [204, 200, 204]


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_has_the_fields_once(
    named: tuple[RunningRouter, Backend], streamed: bool
) -> None:
    router, backend = named
    told = answer(more=ITS_OWN)
    if streamed:
        told = stream(2).replace(b"\r\n", b"\r\n" + ITS_OWN.encode(), 1)
    backend.say(told)
    status, fields = got(router, chat(stream=streamed, fields=key()))
    assert status == 200
    assert fields["access-control-allow-origin"] == [APP]
    assert fields["vary"] == ["origin"]
    (exposed,) = fields["access-control-expose-headers"]
    assert "x-request-id" in exposed
    assert "secret" not in exposed


ERRORS = {
    401: chat(fields=key("wrong-key")),
    404: chat("nobody", fields=key()),
    405: chat(fields=key()).replace(b"POST", b"PUT", 1),
    431: chat(fields=key() + f"x: {'y' * 70_000}\r\n"),
}


@pytest.mark.parametrize("status", ERRORS)
def test_a_page_can_read_our_errors(named: tuple[RunningRouter, Backend], status: int) -> None:
    router, _ = named
    found, fields = got(router, ERRORS[status])
    assert found == status
    assert fields["access-control-allow-origin"] == [APP]


def test_other_origins_are_told_nothing(named: tuple[RunningRouter, Backend]) -> None:
    router, backend = named
    backend.say(answer(more=ITS_OWN))
    for origin in ("https://evil.example", "https://app.example.evil", "null", f"{APP}:8443"):
        status, fields = got(router, preflight(origin=origin))
        assert status == 403
        assert not [name for name in fields if name.startswith("access-control")]
        status, fields = got(router, chat(fields=key(origin=origin)))
        assert status == 200
        assert not [name for name in fields if name.startswith("access-control")]
        assert fields["vary"] == ["origin"]


def test_any_origin(anyone: tuple[RunningRouter, Backend]) -> None:
    router, backend = anyone
    backend.say(answer())
    status, fields = got(router, preflight(origin="https://some.example"))
    assert status == 204
    assert fields["access-control-allow-origin"] == ["*"]
    assert fields["access-control-allow-headers"] == ["Authorization"]
    status, fields = got(router, chat(fields="Origin: https://some.example\r\n"))
    assert status == 200
    assert fields["access-control-expose-headers"] == ["x-a, x-b"]


def test_it_is_off_unless_asked_for(off: tuple[RunningRouter, Backend]) -> None:
    router, backend = off
    backend.say(answer(more=ITS_OWN))
    backend.asked.clear()
    status, fields = got(router, preflight())
    assert status == 401
    status, fields = got(router, chat(fields=key()))
    assert status == 200
    assert not [name for name in fields if name.startswith("access-control")]
    assert len(backend.asked) == 1


def test_without_keys_pages_of_other_hosts_are_refused() -> None:
    with router_with(None, keys=False) as (router, backend):
        backend.say(answer())
        backend.asked.clear()
        assert got(router, chat(fields="Origin: https://some.example\r\n"))[0] == 403
        assert backend.asked == []
        assert got(router, chat(fields="Origin: http://localhost:3000\r\n"))[0] == 200
