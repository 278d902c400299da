"""What every answer of the router has in its head, and who a request is from."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator

import pytest

from tests.serving.proxy.backend import Backend, answer, backends
from tests.serving.proxy.raw import chat, raw
from tests.serving.running import RunningRouter, ask, running_router, until

KEY = "sk-" + "k" * 40
OWN = re.compile(r"[0-9a-f]{13,}")
PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[RunningRouter, Backend]]:
    with backends(2) as (backend, dead):
        models = {
            "m": {"endpoints": [{"url": backend.url}], "hedge": {"enabled": False}},
            "dead": {"endpoints": [{"url": dead.url}], "hedge": {"enabled": False}},
        }
        dead.stop()
        with running_router({"models": models, "limits": {"body_bytes": 100_000}}) as router:
            until(lambda: ask(router.name, "GET", "/ready")[0] == 200)
            yield router, backend


@pytest.fixture(scope="module")
def keyed() -> Iterator[tuple[RunningRouter, Backend]]:
    with backends(1) as (backend,):
        models = {"m": {"endpoints": [{"url": backend.url}], "hedge": {"enabled": False}}}
        config = {"models": models, "tenants": {"t": {"keys": ["env:KEY_OF_T"]}}}
        with running_router(config, env={"KEY_OF_T": KEY}) as router:
            yield router, backend


def request(method: str, path: str, body: bytes = b"", fields: str = "") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\n{fields}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


ANSWERS = {
    "answered": (chat(), 200),
    "models": (request("GET", "/v1/models"), 200),
    "alive": (request("GET", "/healthz"), 200),
    "ready": (request("GET", "/ready"), 200),
    "unknown path": (request("GET", "/nowhere"), 404),
    "unknown model": (chat("nobody"), 404),
    "wrong method": (request("GET", PATH), 405),
    "no JSON": (request("POST", PATH, b"{"), 400),
    "no endpoint": (chat("dead"), 502),
    "compressed": (request("POST", PATH, b"x", "Content-Encoding: gzip\r\n"), 415),
    "too long": (request("POST", PATH, b" " * 100_001), 413),
    "no host": (b"GET /v1/models HTTP/1.1\r\n\r\n", 400),
    "no HTTP": (b"\x16\x03\x01\r\n\r\n", 400),
    "large head": (request("GET", "/v1/models", fields="x: y\r\n" + f"z: {'z' * 70_000}\r\n"), 431),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_every_answer_has_its_ids(served: tuple[RunningRouter, Backend], case: str) -> None:
    router, backend = served
    backend.say(answer())
    until(lambda: router.post(b'{"model":"m","messages":[]}')[0] == 200)
    sent, wanted = ANSWERS[case]
    with raw(router.port) as client:
        client.send(sent)
        status, fields = client.head()
    assert status == wanted or (case == "no endpoint" and status == 503)
    assert OWN.fullmatch(fields["x-trainmesh-request-id"])
    assert fields["x-request-id"] == fields["x-trainmesh-request-id"]
    named = {"answered": backend.name}.get(case)
    if case != "no endpoint":
        assert fields.get("x-trainmesh-endpoint") == named


@pytest.mark.parametrize("case", ["answered", "unknown model", "models", "compressed"])
def test_a_clients_id_is_told_back(served: tuple[RunningRouter, Backend], case: str) -> None:
    router, backend = served
    more = "X-Request-ID: trace/7\r\nX-Request-Id: other\r\n"
    backend.say(answer(more="X-Request-ID: the-endpoints\r\n"))
    sent, wanted = ANSWERS[case]
    with raw(router.port) as client:
        client.send(sent.replace(b"Host: x\r\n", f"Host: x\r\n{more}".encode(), 1))
        head = client.until(b"\r\n\r\n").decode()
    assert f" {wanted} " in head.partition("\r\n")[0]
    assert re.findall(r"(?i)^x-request-id: (.*)\r$", head, re.MULTILINE) == ["trace/7"]
    (own,) = re.findall(r"^x-trainmesh-request-id: (.*)\r$", head, re.MULTILINE)
    assert OWN.fullmatch(own)


def test_three_clients_with_one_id_are_three_requests(
    served: tuple[RunningRouter, Backend],
) -> None:
    router, backend = served
    backend.say(answer())
    backend.asked.clear()
    own = []
    for _ in range(3):
        with raw(router.port) as client:
            client.send(chat(fields="x-request-id: same\r\n"))
            fields = client.json()[1]
            assert fields["x-request-id"] == "same"
            own.append(fields["x-trainmesh-request-id"])
    assert len(set(own)) == 3
    told = [each.header("x-request-id") for each in backend.asked]
    assert told == [f"same-{each}" for each in own], "the endpoint can't tell them apart"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "identity, gzip"])
def test_a_compressed_body_is_refused_in_words(
    served: tuple[RunningRouter, Backend], coding: str
) -> None:
    router, backend = served
    backend.asked.clear()
    body = chat().partition(b"\r\n\r\n")[2]
    packed = {"gzip": gzip.compress(body), "deflate": zlib.compress(body)}.get(coding, body)
    with raw(router.port) as client:
        client.send(request("POST", PATH, packed, f"Content-Encoding: {coding}\r\n"))
        status, fields, said = client.json()
        assert status == 415
        assert fields["accept-encoding"] == "identity"
        assert json.loads(said)["error"]["code"] == "unsupported_content_encoding"
        client.send(request("POST", PATH, body, "Content-Encoding: identity\r\n"))
        assert client.json()[0] == 200
    (one,) = backend.asked
    assert one.header("content-encoding") is None


def test_a_compressed_answer_keeps_its_coding(served: tuple[RunningRouter, Backend]) -> None:
    router, backend = served
    packed = gzip.compress(b'{"object":"chat.completion"}')
    backend.say(answer(packed, more="Content-Encoding: gzip\r\n"))
    with raw(router.port) as client:
        client.send(chat(fields="Accept-Encoding: gzip\r\n"))
        status, fields, body = client.json()
    assert (status, fields["content-encoding"], body) == (200, "gzip", packed)


def key_refused(router: RunningRouter, fields: str) -> int:
    with raw(router.port) as client:
        client.send(chat(fields=fields))
        return client.head()[0]


def test_a_key_may_come_as_azures_clients_send_it(keyed: tuple[RunningRouter, Backend]) -> None:
    router, backend = keyed
    backend.asked.clear()
    assert key_refused(router, f"api-key: {KEY}\r\n") == 200
    assert key_refused(router, f"API-Key: {KEY}\r\n") == 200
    assert key_refused(router, f"api-key: {KEY}x\r\n") == 401
    assert key_refused(router, f"api-key: {KEY}\r\napi-key: {KEY}\r\n") == 400
    assert key_refused(router, f"Authorization: Bearer no\r\napi-key: {KEY}\r\n") == 401
    assert len(backend.asked) == 2
    assert all(KEY.encode() not in each.head for each in backend.asked)


def test_without_keys_of_its_own_it_passes_them_on(served: tuple[RunningRouter, Backend]) -> None:
    router, backend = served
    backend.say(answer())
    backend.asked.clear()
    assert key_refused(router, f"api-key: {KEY}\r\nauthorization: Bearer a\r\n") == 200
    (asked,) = backend.asked
    assert asked.header("api-key") == KEY
    assert asked.header("authorization") == "Bearer a"


def test_an_openai_client_sees_the_id(served: tuple[RunningRouter, Backend]) -> None:
    openai = pytest.importorskip("openai")
    router, backend = served
    backend.say(answer(b'{"id":"1","object":"chat.completion","choices":[]}'))
    client = openai.OpenAI(base_url=f"{router.url}/v1", api_key="x", max_retries=0)
    made = client.chat.completions.create(
        model="m", messages=[], extra_headers={"x-request-id": "mine"}
    )
    assert made._request_id == "mine"
    with pytest.raises(openai.NotFoundError) as found:
        client.chat.completions.create(model="nobody", messages=[])
    assert OWN.fullmatch(found.value.request_id or "")
