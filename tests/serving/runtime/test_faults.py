"""Replicas that are killed, slowed and healed under load: what clients and servers see of it."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.serving.running import RunningRouter, ask, running_router, until
from tests.serving.runtime.load import Asked, Load, chat, content
from tests.serving.runtime.replicas import Replica
from tests.serving.tap import Exchange


def without_hedges(replicas: list[Replica]) -> dict[str, Any]:
    """Hedges repeat a request on purpose."""
    endpoints = [{"url": replica.url, "runtime": "llamacpp"} for replica in replicas]
    return {"models": {"tiny": {"endpoints": endpoints, "hedge": {"enabled": False}}}}


@pytest.fixture(scope="module")
def module_router(module_replicas: list[Replica]) -> Iterator[RunningRouter]:
    with running_router(without_hedges(module_replicas)) as running:
        yield running


@pytest.fixture
def router(module_router: RunningRouter, replicas: list[Replica]) -> RunningRouter:
    """One that uses all replicas."""

    def uses_all() -> bool:
        with ThreadPoolExecutor(12) as pool:
            answers = pool.map(lambda _: module_router.post(chat("x", tokens=64)), range(12))
        assert {status for status, _ in answers} == {200}
        return all(any(each.method == "POST" for each in r.tap.exchanges) for r in replicas)

    until(uses_all)
    for replica in replicas:
        replica.tap.forget()
    return module_router


def expected(replica: Replica, words: int, tokens: int) -> list[str]:
    """What each prompt is answered with, asked without the router."""
    name = replica.direct.removeprefix("http://")
    bodies = [chat(f"prompt {number}", tokens=tokens) for number in range(words)]
    answers = [ask(name, "POST", "/v1/chat/completions", body) for body in bodies]
    return [content(answer, stream=False) for _, answer in answers]


async def disturb(load: Load, replicas: list[Replica]) -> None:
    """One replica dies and comes back, one is slow for a while, one stands still for a while."""
    dying, slow, still = replicas
    steps = [
        lambda: None,
        dying.kill,
        lambda: setattr(slow.tap, "delay_s", 0.02),
        dying.heal,
        still.stop,
        lambda: setattr(slow.tap, "delay_s", 0),
        still.go_on,
        dying.kill,
        dying.heal,
    ]
    for step in steps:
        await asyncio.to_thread(step)
        await asyncio.sleep(0.6)
    load.stop()


async def under(load: Load, replicas: list[Replica]) -> None:
    await asyncio.gather(load.run(), disturb(load, replicas))


def test_no_request_is_lost_or_repeated_and_streams_are_right_to_the_byte(
    router: RunningRouter, replicas: list[Replica]
) -> None:
    load = Load(router.url, clients=8)
    right = expected(replicas[0], load.words, load.tokens)
    for replica in replicas:
        replica.tap.piece_bytes = 1000
    asyncio.run(under(load, replicas))
    assert len(load.asked) > 100
    problems = [problem for asked in load.asked if (problem := judge(asked, replicas, right))]
    assert not problems, "\n".join(problems[:10])
    assert [error for replica in replicas for error in replica.tap.errors] == []
    assert sum(asked.done for asked in load.asked) > 0.9 * len(load.asked)


def judge(asked: Asked, replicas: list[Replica], right: list[str]) -> str:
    """What is wrong with how a request was served; empty if nothing is."""
    attempts = sent(replicas, asked.request_id)
    answered = [each for each in attempts if each.body]
    where = f"{asked} attempts {attempts} end {asked.body[-200:]!r}"
    if len(answered) != 1:
        return f"{len(answered)} attempts were answered: {where}"
    (attempt,) = answered
    if asked.status != 200 or attempt.status != 200:
        return f"status: {where}"
    if attempt is not attempts[-1]:
        return f"it was sent again after an answer had begun: {where}"
    return judge_body(asked, attempt, right[int(asked.words.split()[1])], where)


def judge_body(asked: Asked, attempt: Exchange, right: str, where: str) -> str:
    if asked.done:
        same = attempt.complete and asked.body == attempt.body
        said = content(asked.body, stream=asked.stream)
        return "" if same and said == right else f"not to the byte: {where}"
    if attempt.complete:
        return f"a whole answer did not arrive: {where}"
    if not asked.stream:
        return "" if attempt.body.startswith(asked.body) else f"wrong bytes: {where}"
    if asked.broken:
        within = not asked.body.endswith(b"\n\n") and attempt.body.startswith(asked.body)
        return "" if within else f"a stream was cut between two events: {where}"
    begun, _, event = asked.body.rpartition(b"data: ")
    whole = not begun or (begun.endswith(b"\n\n") and attempt.body.startswith(begun))
    told = b'"stream_interrupted"' in event
    return "" if whole and told else f"a broken stream without its error: {where}"


def test_a_stream_that_dies_ends_in_an_error_and_without_done(
    router: RunningRouter, replicas: list[Replica]
) -> None:
    for replica in replicas:
        replica.tap.piece_bytes, replica.tap.delay_s = 512, 0.01
    body = chat("a long story", tokens=2000, stream=True)
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
    request += b"x-request-id: long\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    with socket.create_connection(("127.0.0.1", router.port), 10) as client:
        client.sendall(request)
        data = client.recv(4096)
        while data.count(b"data: ") < 5:
            data += client.recv(4096)
        (victim,) = [replica for replica in replicas if replica.tap.of("long")]
        victim.kill()
        while not data.endswith(b"\r\n0\r\n\r\n"):
            piece = client.recv(65536)
            assert piece, f"the chunked body has no end: {data[-300:]!r}"
            data += piece
    head, _, chunks = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"[DONE]" not in data
    event = chunks.removesuffix(b"\r\n0\r\n\r\n").rpartition(b"data: ")[2]
    assert json.loads(event)["error"]["code"] == "stream_interrupted"
    (attempt,) = victim.tap.of("long")
    sent = attempt.raw.partition(b"\r\n\r\n")[2]
    forwarded = chunks[: chunks.rindex(b"data: ")].rpartition(b"\r\n")[0]
    assert sent.startswith(forwarded.rstrip(b"\n").rpartition(b"\r\n")[0])


@pytest.mark.parametrize("stream", [False, True])
def test_every_disconnect_reaches_the_server(
    router: RunningRouter, replicas: list[Replica], stream: bool
) -> None:
    for replica in replicas:
        replica.tap.piece_bytes, replica.tap.delay_s = 64, 0.05 if stream else 30
    names = [f"leaver-{number}" for number in range(20)]
    attempts = [leave(router, replicas, name, stream) for name in names]
    until(lambda: all(each.cancelled for each in attempts), what="a server was not told")
    assert not any(each.complete for each in attempts)


def sent(replicas: list[Replica], name: str, kind: str = "") -> list[Exchange]:
    """What reached the servers under this request id, in turn."""
    attempts = [each for replica in replicas for each in replica.tap.of(name, kind)]
    return sorted(attempts, key=lambda attempt: attempt.begun_s)


def leave(router: RunningRouter, replicas: list[Replica], name: str, stream: bool) -> Exchange:
    """Ask, and be gone: once the answer has begun, or (not streaming) before it does."""
    body = chat(name, tokens=200, stream=stream)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-request-id: {name}\r\n"
    with socket.create_connection(("127.0.0.1", router.port), 10) as client:
        client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        (attempt,) = until(lambda: sent(replicas, name))
        if stream:
            assert client.recv(1)
    return attempt


def test_a_healed_replica_is_used_again(router: RunningRouter, replicas: list[Replica]) -> None:
    def answered() -> None:
        assert router.post(chat("x", tokens=4))[0] == 200

    replicas[0].kill()
    for _ in range(12):
        answered()
    replicas[0].heal()
    before = len(replicas[0].tap.exchanges)

    def asked_again() -> bool:
        answered()
        paths = [each.path for each in replicas[0].tap.exchanges[before:]]
        return "/v1/chat/completions" in paths

    until(asked_again, what="it is not used after it came back")


def test_a_hedge_answers_for_a_slow_replica_and_the_loser_is_cancelled(
    replicas: list[Replica],
) -> None:
    endpoints = [{"url": replica.url, "runtime": "llamacpp"} for replica in replicas]
    model = {
        "endpoints": endpoints,
        "policy": "round_robin",
        "hedge": {"budget": 1, "min_delay_s": 0.02},
        "eject": {"latency_ratio": 1000},
    }
    with running_router({"models": {"tiny": model}}) as router:
        right = expected(replicas[0], 16, 4)
        for number in range(60):
            body = chat(f"prompt {number % 16}", tokens=4)
            assert router.post(body)[0] == 200
        replicas[0].tap.delay_s = 3
        ids = [f"hedged-{number}" for number in range(6)]
        for number, name in enumerate(ids):
            body = chat(f"prompt {number}", tokens=4)
            status, answer = router.post(body, name)
            assert status == 200
            assert content(answer, stream=False) == right[number]
        hedged = [name for name in ids if sent(replicas, name, "-hedge")]
        assert hedged, "nothing was hedged"
        losers = [each for name in hedged for each in replicas[0].tap.of(name)]
        assert losers
        until(lambda: all(each.cancelled for each in losers), what="a loser went on")


def test_a_router_that_stops_loses_no_request(replicas: list[Replica]) -> None:
    """What it has taken is answered to the end; what comes later has reached no server."""
    with running_router(without_hedges(replicas)) as router:
        check_stop(router, replicas)


def check_stop(router: RunningRouter, replicas: list[Replica]) -> None:
    load = Load(router.url, clients=8, tokens=200)
    for replica in replicas:
        replica.tap.piece_bytes, replica.tap.delay_s = 4096, 0.02

    async def stop() -> None:
        while len(load.asked) < 40:
            await asyncio.sleep(0.01)
        router.process.terminate()
        await asyncio.to_thread(router.process.wait, 30)
        load.stop()

    async def both() -> None:
        await asyncio.gather(load.run(), stop())

    asyncio.run(both())
    assert router.process.returncode == 0
    for asked in load.asked:
        attempts = sent(replicas, asked.request_id)
        if attempts:
            assert asked.done, asked
            assert asked.body == attempts[0].body
        else:
            assert not asked.status, asked
    assert sum(asked.done for asked in load.asked) >= 40


def test_a_changed_file_loses_no_request(replicas: list[Replica]) -> None:
    """An endpoint is taken out of serve.yaml under load."""
    load = Load("", clients=8)
    right = expected(replicas[0], load.words, load.tokens)

    async def change(router: RunningRouter) -> None:
        await asyncio.to_thread(until, lambda: in_use(replicas[0]))
        await asyncio.to_thread(router.rewrite, without_hedges(replicas[1:]))
        await asyncio.to_thread(until, lambda: not in_use(replicas[0]))
        load.stop()

    async def both(router: RunningRouter) -> None:
        await asyncio.gather(load.run(), change(router))

    with running_router(without_hedges(replicas)) as router:
        load.url = router.url
        asyncio.run(both(router))
    problems = [problem for asked in load.asked if (problem := judge(asked, replicas, right))]
    assert not problems, "\n".join(problems[:10])
    assert all(asked.done for asked in load.asked)


def in_use(replica: Replica) -> bool:
    """Whether it is asked anything within half a second."""
    before = len(replica.tap.exchanges)
    time.sleep(0.5)
    return any(each.method == "POST" for each in replica.tap.exchanges[before:])
