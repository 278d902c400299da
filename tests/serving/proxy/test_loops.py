"""Endpoints whose url leads back to the router."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.launchjob import place
from tests.serving.proxy.backend import Backend, answer, backends
from tests.serving.running import running_router
from tests.serving.tap import free_port
from trainmesh.serving.proxy.loops import ViaChain
from trainmesh.serving.refusal import RequestRefused

ASK = b'{"model":"m","messages":[]}'
MODEL = {"hedge": {"enabled": False}, "policy": "round_robin"}


@pytest.fixture
def good() -> Iterator[Backend]:
    with backends(1) as made:
        made[0].say(answer())
        yield made[0]


def test_a_url_that_leads_back_costs_nobody_an_answer(good: Backend) -> None:
    port = free_port()
    endpoints = [{"url": f"http://127.0.0.1:{port}"}, {"url": good.url}]
    config = {"listen": f"127.0.0.1:{port}", "models": {"m": {"endpoints": endpoints, **MODEL}}}
    with running_router(config) as router:
        assert {router.post(ASK)[0] for _ in range(8)} == {200}
    # Its own requests went round once, at most, before another endpoint was asked.
    assert len(good.asked) == 8
    (way,) = {asked.header("x-trainmesh-via") for asked in good.asked}
    assert way is not None


def test_two_routers_that_ask_each_other_end_at_once() -> None:
    ports = [free_port(), free_port()]
    configs = [
        {
            "listen": f"127.0.0.1:{own}",
            "models": {"m": {"endpoints": [{"url": f"http://127.0.0.1:{other}"}], **MODEL}},
        }
        for own, other in (ports, reversed(ports))
    ]
    with running_router(configs[0]) as first, running_router(configs[1]):
        status, body = first.post(ASK)
    assert status == 508
    assert json.loads(body)["error"]["code"] == "loop_detected"


def test_other_routers_are_passed() -> None:
    way = ViaChain(b"a-1")
    way.check(None)
    way.check(b"a-12, b")
    assert way.field(None) == b"x-trainmesh-via: a-1\r\n"
    assert way.field(b"b") == b"x-trainmesh-via: b, a-1\r\n"
    with pytest.raises(RequestRefused) as refused:
        way.check(b"b,a-1 ,c")
    assert refused.value.refusal.status == 508


def test_a_second_router_on_one_address_is_refused(good: Backend) -> None:
    config = {"models": {"m": {"endpoints": [{"url": good.url}], **MODEL}}}
    with running_router(config) as router, place() as here:
        file = here.path / "serve.yaml"
        file.write_text(json.dumps({"version": 1, "listen": router.name, **config}))
        again = subprocess.run(
            [sys.executable, "-m", "trainmesh", "serve", "--config", str(file)],
            env={**here.environment, "XDG_STATE_HOME": str(here.path)},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert again.returncode == 2
        assert f"listen: can't listen on {router.name}: Address already in use" in again.stderr
        assert "Traceback" not in again.stderr
        assert router.post(ASK)[0] == 200
