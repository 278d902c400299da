"""Clients that mean harm: each is refused, the others do not notice, memory stays flat."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection

import pytest

from tests.needs import need_open_files
from tests.serving.abuse.proxies import Backend, backend
from tests.serving.abuse.requests import BODY
from tests.serving.running import RunningRouter, ask, running_router, until
from tests.serving.tap import LoopThread

PATH = "/v1/chat/completions"
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
LIMITS = {
    "header_timeout_s": 1,
    "body_timeout_s": 1,
    "body_bytes": 4 << 20,
    "connections": 800,
}
GROWTH_BYTES = 20 << 20


@pytest.fixture(scope="module")
def behind(taps: LoopThread) -> Iterator[Backend]:
    with backend(taps) as made:
        yield made


@pytest.fixture(scope="module")
def router(behind: Backend) -> Iterator[RunningRouter]:
    endpoint = {"url": f"http://127.0.0.1:{behind.port}", "max_inflight": 2000}
    model = {"endpoints": [endpoint], "hedge": {"enabled": False}}
    with running_router({"models": {"m": model}, "limits": LIMITS}) as running:
        yield running
        assert "Traceback" not in running.log
        assert len(running.log.splitlines()) < 30, running.log


@pytest.fixture(autouse=True)
def bystander(router: RunningRouter) -> Iterator[None]:
    """Another client, who asks on during each test and always gets an answer."""
    statuses: list[int] = []
    stopping = threading.Event()

    def go_on() -> None:
        connection = HTTPConnection(router.name, timeout=20)
        with closing(connection):
            while not stopping.is_set():
                try:
                    connection.request("POST", PATH, BODY)
                    response = connection.getresponse()
                    response.read()
                    statuses.append(response.status)
                except OSError as error:
                    statuses.append(-(error.errno or 1))
                stopping.wait(0.02)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
        until(lambda: statuses)
    finally:
        stopping.set()
        thread.join()
    assert set(statuses) == {200}


def converse(router: RunningRouter, *pieces: bytes, pause_s: float = 0) -> bytes:
    """All that comes back until the router closes; sending stops when it does."""
    with socket.create_connection(("127.0.0.1", router.port), 20) as client:
        with suppress(OSError):
            for piece in pieces:
                client.sendall(piece)
                if pause_s:
                    threading.Event().wait(pause_s)
        data = b""
        with suppress(OSError):
            while piece := client.recv(65536):
                data += piece
    return data


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


@contextmanager
def flat(router: RunningRouter) -> Iterator[None]:
    before = router.rss_bytes()
    yield
    growth = router.rss_bytes() - before
    assert growth < GROWTH_BYTES, f"{growth >> 20} MiB more"


async def drip(port: int, start: bytes) -> bytes:
    """Send ``start``, then a byte now and then until the router has had enough."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(start)
    answer = asyncio.ensure_future(reader.read())
    while not answer.done():
        with suppress(OSError):
            writer.write(b"x")
            await writer.drain()
        await asyncio.wait([answer], timeout=0.2)
    writer.transport.abort()
    try:
        return answer.result()
    except OSError:
        return b""


SLOW = {
    "method": b"P",
    "path": b"POST /v1/",
    "fields": HEAD,
    "value": HEAD + b"X-Slow: ",
    "length": HEAD + b"Content-Length: 1000\r\n\r\n",
    "chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n1000\r\n",
    "trailer": HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ",
}


def test_slow_senders_are_cut_off(router: RunningRouter) -> None:
    async def all_of_them() -> dict[str, set[int]]:
        async with asyncio.timeout(15):
            found = {}
            for name, start in SLOW.items():
                found[name] = asyncio.gather(*(drip(router.port, start) for _ in range(40)))
            return {name: {status(each) for each in await found[name]} for name in found}

    with flat(router):
        answers = asyncio.run(all_of_them())
    for name, statuses in answers.items():
        assert statuses <= {0, 400, 408}, name


def test_a_body_that_never_comes_is_not_waited_for(router: RunningRouter) -> None:
    assert status(converse(router, HEAD + b"Content-Length: 100\r\n\r\n" + BODY)) == 408


def test_a_connection_that_says_nothing_costs_nothing(router: RunningRouter) -> None:
    with flat(router):
        silent = [socket.create_connection(("127.0.0.1", router.port)) for _ in range(200)]
        assert router.post(BODY)[0] == 200
        for client in silent:
            client.close()


MEGABYTE = b"x" * (1 << 20)
CHUNKS = b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("pieces", "statuses"),
    [
        ([HEAD, b"Content-Length: 10485760\r\n\r\n", *[MEGABYTE] * 10], {413}),
        ([HEAD, CHUNKS, *[b"100000\r\n" + MEGABYTE + b"\r\n"] * 10, b"0\r\n\r\n"], {413}),
        ([HEAD, CHUNKS, *[b"1\r\nx\r\n" * 10_000] * 50, b"0\r\n\r\n"], {400, 413}),
        ([HEAD, CHUNKS, b"1;", *[MEGABYTE] * 10, b"\r\nx\r\n0\r\n\r\n"], {400, 413, 431}),
        ([HEAD, CHUNKS, *[b"1;" + b"x" * 500 + b"\r\nx\r\n"] * 20_000], {400, 408, 413, 431}),
        ([HEAD, CHUNKS, b"0\r\nX: ", *[MEGABYTE] * 10, b"\r\n\r\n"], {400, 413, 431}),
        ([HEAD, CHUNKS, b"0\r\n", *[b"X: y\r\n" * 10_000] * 20, b"\r\n"], {400, 413, 431}),
        ([HEAD, b"X: ", *[MEGABYTE] * 10, b"\r\n\r\n"], {431}),
        ([HEAD, *[b"X: y\r\n" * 10_000] * 20, b"\r\n"], {431}),
        ([b"POST /", *[MEGABYTE] * 10, b" HTTP/1.1\r\n\r\n"], {414, 431}),
        ([MEGABYTE] * 10, {400, 431}),
        ([b"\r\n" * 500_000] * 4, {0, 400, 404, 408, 431}),
    ],
    ids=[
        "length",
        "chunks",
        "small chunks",
        "extension",
        "extensions",
        "trailer",
        "trailers",
        "field",
        "fields",
        "path",
        "method",
        "empty lines",
    ],
)
def test_what_is_too_large_is_refused_and_not_kept(
    router: RunningRouter, pieces: list[bytes], statuses: set[int]
) -> None:
    pieces = [*pieces, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"]
    converse(router, *pieces)
    with flat(router):
        for _ in range(5):
            assert status(converse(router, *pieces)) in statuses


DEEP = 100_000
BODIES = {
    "nothing": b"",
    "not JSON": b"hello",
    "no object": b"[1]",
    "model a number": b'{"model":1}',
    "model long": b'{"model":"%s"}' % (b"m" * 1_000_000),
    "model with line ends": b'{"model":"m\\r\\nX-Evil: 1\\r\\n\\r\\n"}',
    "model a path": b'{"model":"../../etc/passwd"}',
    "deep arrays": b'{"messages":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep and unfinished": b"[" * DEEP,
    "bad UTF-8": b'{"model":"\xff\xfe"}',
    "lone surrogate": b'{"model":"\\ud800"}',
    "NUL": b'{"model":"m\\u0000"}',
    "rubbish after": BODY + b"}",
    "two objects": BODY + BODY,
    "huge number": b'{"model":"m","max_tokens":%s}' % (b"9" * 5000),
    "comment": b'{"model":"m"/**/}',
    "single quotes": b"{'model':'m'}",
}
PASSED_ON = {
    "no model": b"{}",
    "model null": b'{"model":null}',
    "model empty": b'{"model":""}',
    "byte order mark": b"\xef\xbb\xbf" + BODY,
    "UTF-16": BODY.decode().encode("utf-16"),
    "not a number": b'{"model":"m","max_tokens":NaN}',
    "minus": b'{"model":"m","max_tokens":-1}',
    "max_tokens a word": b'{"model":"m","max_tokens":"many"}',
    "stream a word": b'{"model":"m","stream":"yes"}',
}
"""Bodies that endpoints understand, or refuse in their own words."""
NAMED = {"model null": b'{"model":"m"}', "model empty": b'{"model":"m"}'}
"""A model that the body names by nothing is the only one."""


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_body_is_a_clear_refusal(router: RunningRouter, behind: Backend, name: str) -> None:
    before = len(behind.received)
    code, answer = router.post(BODIES[name], "bad-body")
    assert code in (400, 404)
    error = json.loads(answer)["error"]
    assert error["message"]
    assert len(error["message"]) < 1000
    assert "Traceback" not in error["message"]
    assert not any(b"bad-body" in data for data in behind.received[before:])


@pytest.mark.parametrize("name", PASSED_ON)
def test_an_odd_body_is_left_to_the_endpoint(
    router: RunningRouter, behind: Backend, name: str
) -> None:
    before = len(behind.received)
    assert router.post(PASSED_ON[name], "odd-body")[0] == 200
    (received,) = (data for data in behind.received[before:] if b"odd-body" in data)
    assert received.endswith(b"\r\n\r\n" + NAMED.get(name, PASSED_ON[name]))


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/v1/../v1/chat/completions",
        "/v1/%2e%2e/v1/chat/completions",
        "//v1/chat/completions",
        "/v1//chat/completions",
        "/v1/chat/completions/",
        "/v1/chat/completions/../../admin",
        "/v1/chat/completions%00",
        "/v1/chat/completions;x",
        "/V1/CHAT/COMPLETIONS",
        "/v1/chat%2fcompletions",
        "\\v1\\chat\\completions",
        "/admin",
        "/metrics",
        "/",
        "*",
        "http://evil/",
        "http://127.0.0.1:1/v1/models/../../x",
        "file:///etc/passwd",
    ],
)
def test_other_paths_lead_nowhere(router: RunningRouter, behind: Backend, path: str) -> None:
    mark = f"x-mark: {path}\r\n".encode()
    request = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n".encode() + mark
    answer = converse(router, request + b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY))
    assert status(answer) in (400, 404, 405)
    assert not any(mark in data for data in behind.received)


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "LINK"]
)
def test_other_methods_are_refused(router: RunningRouter, behind: Backend, method: str) -> None:
    mark = f"mark-{method}".encode()
    request = f"{method} {PATH} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n".encode()
    answer = converse(router, request + b"x-mark: %s\r\n\r\n" % mark)
    assert status(answer) in (400, 404, 405, 501)
    assert b"\r\nx-mark" not in answer, "it echoes what it was sent"
    assert not any(mark in data for data in behind.received)


def test_head_has_no_body(router: RunningRouter) -> None:
    head = b"HEAD /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = converse(router, head, b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    first, second = answer.split(b"\r\n\r\n")[:2]
    assert second.startswith(b"HTTP/1.1 "), f"{first!r} has a body"


@pytest.mark.parametrize(
    "value",
    [b"a" * 5000, b"a b", b"\xff\xfe", b"<script>", b"../../x", b'"; drop', b"%0d%0ax: y", b"\t"],
)
def test_a_request_id_is_taken_only_if_it_is_one(
    router: RunningRouter, behind: Backend, value: bytes
) -> None:
    request = HEAD + b"X-Request-Id: %s\r\nConnection: close\r\n" % value
    answer = converse(router, request + b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY))
    assert status(answer) in (200, 400)
    for line in answer.partition(b"\r\n\r\n")[0].split(b"\r\n"):
        assert len(line) < 300
        assert line.isascii()


def test_nobody_sets_the_routers_own_fields(router: RunningRouter, behind: Backend) -> None:
    request = (
        HEAD + b"x-trainmesh-endpoint: evil\r\nx-trainmesh-request-id: evil\r\nx-mark: own\r\n"
    )
    tail = b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
    answer = converse(router, request + tail)
    assert status(answer) == 200
    (sent,) = [data for data in behind.received if b"x-mark: own" in data]
    assert b"evil" not in sent + answer


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n",
        HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY),
    ],
    ids=["local", "refused", "forwarded"],
)
def test_who_asks_on_and_never_reads_is_made_to_wait(
    router: RunningRouter, request_bytes: bytes
) -> None:
    batch = request_bytes * 1000
    with flat(router):
        clients = [socket.create_connection(("127.0.0.1", router.port)) for _ in range(5)]
        for client in clients:
            client.settimeout(0.5)
            with suppress(OSError):
                for _ in range(400):
                    client.sendall(batch)
        for client in clients:
            client.close()


def test_five_hundred_at_once_are_all_answered(router: RunningRouter) -> None:
    async def one() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        writer.write(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)
        answer = await reader.read()
        writer.close()
        return status(answer)

    async def all_of_them() -> list[int]:
        async with asyncio.timeout(30):
            return await asyncio.gather(*(one() for _ in range(500)))

    need_open_files(2 * 500 + 200)  # here are the clients and the endpoint
    for _ in range(2):
        assert set(asyncio.run(all_of_them())) == {200}
    with flat(router):
        assert set(asyncio.run(all_of_them())) == {200}


def test_there_are_never_more_connections_than_allowed(router: RunningRouter) -> None:
    clients = [socket.create_connection(("127.0.0.1", router.port)) for _ in range(780)]
    try:
        assert router.post(BODY)[0] == 200
        clients += [socket.create_connection(("127.0.0.1", router.port)) for _ in range(200)]
        closed = 0
        for client in clients:
            client.settimeout(0.001)
            try:
                closed += client.recv(1) == b""
            except TimeoutError:
                pass
            except OSError:
                closed += 1
        assert closed >= 180
    finally:
        for client in clients:
            client.close()

    def answers() -> bool:
        with suppress(OSError):
            return ask(router.name, "GET", "/v1/models")[0] == 200
        return False

    until(answers)
