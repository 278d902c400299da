"""``telemetry.access_log``: one line for each request that is answered, by whomever."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving.proxy.backend import backends
from tests.serving.proxy.raw import chat, raw
from tests.serving.running import RunningRouter, running_router, until

KEY, SLOW = "sk-" + "k" * 40, "sk-" + "s" * 40
MINE = f"Authorization: Bearer {KEY}\r\n"


@pytest.fixture(scope="module")
def router() -> Iterator[RunningRouter]:
    with backends(1) as made:
        config = {
            "models": {"m": {"endpoints": [{"url": made[0].url}]}},
            "tenants": {
                "acme": {"keys": ["env:ACME_KEY"]},
                "slow": {"keys": ["env:SLOW_KEY"], "requests_per_s": 0.001, "burst_s": 1},
            },
            "limits": {"body_bytes": 1000},
            "telemetry": {"access_log": True},
            "cors": {"origins": ["https://app.example"]},
        }
        with running_router(config, env={"ACME_KEY": KEY, "SLOW_KEY": SLOW}) as router:
            asked(router, chat(fields=f"api-key: {SLOW}\r\n"))  # all that it may for a while
            yield router


def lines(router: RunningRouter) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in router.log.splitlines() if line.startswith("{")]
    return [line for line in found if line["event"] == "request"]


def asked(router: RunningRouter, request_bytes: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """The line of a request, and the fields of its answer; another request's line follows it."""
    ids = []
    for sent in (request_bytes, get("/healthz")):
        with raw(router.port) as client:
            client.send(sent)
            status, fields = client.head()
        ids.append(fields["x-trainmesh-request-id"])
        if sent is request_bytes:
            told = {**fields, "status": str(status)}
    until(lambda: any(line["id"] == ids[1] for line in lines(router)))
    [line] = [line for line in lines(router) if line["id"] == ids[0]]
    return line, told


def get(path: str, fields: str = MINE) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\n".encode()


PREFLIGHT = (
    b"OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: x\r\nOrigin: https://app.example\r\n"
    b"Access-Control-Request-Method: POST\r\n\r\n"
)
CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("request_bytes", "status", "told"),
    [
        (chat(fields=MINE), 200, {"path": CHAT, "method": "POST", "model": "m", "tenant": "acme"}),
        (chat(), 401, {"path": CHAT, "method": "POST", "tenant": ""}),
        (chat("none", fields=MINE), 404, {"path": CHAT, "model": "none", "tenant": "acme"}),
        (chat("m", more="," + "x" * 2000, fields=MINE), 413, {"path": CHAT}),
        (chat("m", more=",x", fields=MINE), 400, {"path": CHAT, "tenant": "acme"}),
        (chat(fields=f"api-key: {SLOW}\r\n"), 429, {"model": "m", "tenant": "slow"}),
        (get("/nowhere?secret=1"), 404, {"path": "/nowhere", "method": "GET"}),
        (get(CHAT), 405, {"path": CHAT, "method": "GET"}),
        (get("/v1/models"), 200, {"path": "/v1/models", "tenant": "acme"}),
        (get("/health", ""), 200, {"path": "/health", "tenant": ""}),
        (PREFLIGHT, 204, {"path": CHAT, "method": "OPTIONS"}),
        (b"nonsense\r\n\r\n", 400, {"path": "", "method": ""}),
        (b"GET / HTTP/1.1\r\n\r\n", 400, {"path": "/"}),
    ],
)  # fmt: skip
def test_each_answer_has_one_line(
    router: RunningRouter, request_bytes: bytes, status: int, told: dict[str, str]
) -> None:
    line, fields = asked(router, request_bytes)
    assert (int(fields["status"]), line["status"]) == (status, status)
    assert {key: line[key] for key in told} == told
    assert 0 <= line["duration_s"] < 20
    assert line["endpoint"] == fields.get("x-trainmesh-endpoint", "")
