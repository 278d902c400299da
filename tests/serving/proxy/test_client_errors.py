"""Endpoints that refuse what others answer: nobody is to be sent there for being refused fast."""

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import pytest

from tests.serving.proxy.backend import Backend, Script, answer, backends
from tests.serving.running import RunningRouter, running_router, until

CASES = [
    *(("hybrid", status) for status in (401, 404, 408, 424, 400, 422, 307)),
    ("least_requests", 404),
    ("round_robin", 404),
]
CLIENTS = 8
EACH = 25
GOOD = b'{"object":"chat.completion"}'


async def well(_: Backend, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(0.01)
    writer.write(answer(GOOD))


def refuses(status: int) -> Script:
    async def script(_: Backend, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(json.dumps({"error": {"code": status}}).encode(), status))

    return script


async def resets(_: Backend, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


def asked_once(router: RunningRouter, model: str) -> tuple[int, bytes]:
    return router.post(json.dumps({"model": model, "messages": []}).encode())


def load(router: RunningRouter, model: str) -> list[int]:
    """Statuses that clients with a connection each got, one request after another."""
    body = json.dumps({"model": model, "messages": []}).encode()

    def client(_: int) -> list[int]:
        connection = HTTPConnection("127.0.0.1", router.port, timeout=30)
        statuses = []
        for _ in range(EACH):
            connection.request("POST", "/v1/chat/completions", body)
            response = connection.getresponse()
            response.read()
            statuses.append(response.status)
        connection.close()
        return statuses

    with ThreadPoolExecutor(CLIENTS) as pool:
        return [status for statuses in pool.map(client, range(CLIENTS)) for status in statuses]


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[RunningRouter, list[Backend]]]:
    """Models of the same two good endpoints, each with a bad one of its own; and ``two``, with the
    last two endpoints."""
    with backends(2 + len(CASES) + 2) as made:
        good, bad, two = made[:2], made[2:-2], made[-2:]
        for backend in good:
            backend.do(well)
        models: dict[str, dict[str, object]] = {
            f"{policy}-{status}": {
                "policy": policy,
                "endpoints": [{"url": each.url} for each in (one, *good)],
            }
            for (policy, status), one in zip(CASES, bad, strict=True)
        }
        for (_, status), one in zip(CASES, bad, strict=True):
            one.do(refuses(status))
        pair = [{"url": each.url} for each in two]
        models["two"] = {"endpoints": pair, "hedge": {"enabled": False}}
        models["once"] = {
            "endpoints": pair, "hedge": {"enabled": False}, "retry": {"attempts": 1},
        }  # fmt: skip
        with running_router({"models": models}) as router:
            yield router, made


@pytest.mark.parametrize(("policy", "status"), CASES)
def test_no_client_sees_what_only_one_endpoint_refuses(
    served: tuple[RunningRouter, list[Backend]], policy: str, status: int
) -> None:
    router, made = served
    bad = made[2 + CASES.index((policy, status))]
    bad.asked.clear()
    statuses = load(router, f"{policy}-{status}")
    assert statuses == [200] * (CLIENTS * EACH)
    ejected = [line for line in router.log.splitlines() if "ejected" in line]
    mine = [line for line in ejected if f"{policy}-{status}" in line]
    assert any(bad.name in line and "refused what another" in line for line in mine)
    assert not any(f" {good.name}" in line for line in ejected for good in made[:2])
    # Until it is out it may be asked by all clients at once, and tried once a second after that.
    assert len(bad.asked) <= 3 * CLIENTS


def test_what_all_endpoints_refuse_is_the_clients_fault(
    served: tuple[RunningRouter, list[Backend]],
) -> None:
    router, made = served
    for status, share in ((400, 0.02), (404, 0.1)):
        for backend in made[-2:]:
            backend.do(refuses(status))
            backend.asked.clear()
        began_s = time.monotonic()
        count = CLIENTS * EACH
        assert load(router, "two") == [status] * count
        extra = sum(len(backend.asked) for backend in made[-2:]) - count
        # The budget: a burst, a share of the requests, and one a second at most; and copies.
        assert extra <= 10 + share * count + 2 * (time.monotonic() - began_s) + 2
    for line in router.log.splitlines():
        assert not ("ejected" in line and "two" in line and made[-1].name in line)


def test_a_refusal_waits_for_the_other_answer_and_is_told_if_there_is_none(
    served: tuple[RunningRouter, list[Backend]],
) -> None:
    router, (*_, one, other) = served
    text = json.dumps({"error": {"message": "é" * 50_000}}).encode()

    async def at_length(_: Backend, writer: asyncio.StreamWriter) -> None:
        whole = answer(text, 404)
        writer.write(whole[:200])
        await asyncio.sleep(0.05)
        writer.write(whole[200:])

    async def after_a_while(_: Backend, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        writer.transport.abort()

    for script in (resets, after_a_while):
        for refusing, silent in ((one, other), (other, one)):
            refusing.do(at_length)
            silent.do(script)
            got = {asked_once(router, "two") for _ in range(3)}
            assert got <= {(404, text)}, [(status, body[:200]) for status, body in got]
            refusing.do(well)
            silent.do(well)
            until(lambda: asked_once(router, "two")[0] == 200)


def test_one_attempt_is_one_attempt(served: tuple[RunningRouter, list[Backend]]) -> None:
    router, made = served
    pair = made[-2:]
    for backend in pair:
        backend.do(refuses(404))
    for _ in range(3):
        for backend in pair:
            backend.asked.clear()
        assert asked_once(router, "once")[0] == 404
        real = [each for backend in pair for each in backend.asked]
        assert (
            len([each for each in real if "-trial" not in (each.header("x-request-id") or "")]) == 1
        )
    for backend in pair:
        backend.do(well)


def test_a_server_that_comes_back_without_its_model_is_not_let_in(
    served: tuple[RunningRouter, list[Backend]],
) -> None:
    router, (*_, one, other) = served
    for backend in (one, other):
        backend.do(well)
    until(lambda: asked_once(router, "two")[0] == 200)
    other.stop()
    until(lambda: asked_once(router, "two")[0] == 200 and "refused or timed out" in router.log)
    other.do(refuses(404))
    other.start()
    other.asked.clear()
    deadline = time.monotonic() + 6
    answers = []
    while time.monotonic() < deadline:
        answers.append(asked_once(router, "two")[0])
        time.sleep(0.01)
    assert set(answers) == {200}
    assert other.asked, "it was not even tried"
    assert len(other.asked) < 0.1 * len(answers)
    other.do(well)
    other.asked.clear()
    until(lambda: asked_once(router, "two")[0] == 200 and len(other.asked) > 20, 30)


def test_an_endpoint_that_is_let_in_slowly_is_asked_about_what_the_other_refuses() -> None:
    with backends(2) as (back, refusing):
        refusing.do(well)
        back.do(resets)
        pool = {
            "endpoints": [{"url": each.url} for each in (back, refusing)],
            "hedge": {"enabled": False},
            "eject": {"slow_start_s": 600},
        }
        with running_router({"models": {"m": pool}}) as router:
            until(lambda: asked_once(router, "m")[0] == 200 and "ejected" in router.log)
            back.do(well)
            until(lambda: asked_once(router, "m")[0] == 200 and "slow start" in router.log)
            refusing.do(refuses(404))
            assert {asked_once(router, "m") for _ in range(30)} == {(200, GOOD)}
