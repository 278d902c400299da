"""Two models at one URL: what one server can hold is shared, what is learned of a model is not."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from tests.serving.proxy.backend import Backend, answer, backends
from tests.serving.proxy.raw import chat, raw
from tests.serving.running import RunningRouter, running_router, until

MOST = 2


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[RunningRouter, Backend]]:
    """Written in two ways; ``c`` has another server to go to."""
    with backends(2) as (backend, other):
        endpoint = {"url": backend.url, "max_inflight": MOST}
        options = {"hedge": {"enabled": False}, "policy": "least_requests"}
        models = {
            "a": {"endpoints": [endpoint], **options},
            "b": {"endpoints": [{**endpoint, "url": f"{backend.url}/v1"}], **options},
            "c": {"endpoints": [endpoint, {"url": other.url}], **options},
        }
        config = {"models": models, "workers": 1, "limits": {"queue_timeout_s": 30}}
        with running_router(config) as router:
            yield router, backend


def test_what_a_server_holds_is_shared(served: tuple[RunningRouter, Backend]) -> None:
    """Of many requests at once for both models no more than the limit are ever there, none is
    refused, and each model has its turn."""
    router, backend = served
    most = busy = 0

    async def slowly(_: Backend, writer: asyncio.StreamWriter) -> None:
        nonlocal most, busy
        busy += 1
        most = max(most, busy)
        await asyncio.sleep(0.02)
        busy -= 1
        writer.write(answer())

    backend.do(slowly)
    statuses: list[tuple[str, int]] = []

    def client(model: str) -> None:
        for _ in range(6):
            body = b'{"model":"%s","messages":[]}' % model.encode()
            statuses.append((model, router.post(body)[0]))

    clients = [threading.Thread(target=client, args=(model,)) for model in "ab" * 6]
    for one in clients:
        one.start()
    for one in clients:
        one.join(60)
    assert statuses.count(("a", 200)) == statuses.count(("b", 200)) == 36
    assert most == MOST


def test_a_full_server_counts_as_busy_for_other_models(
    served: tuple[RunningRouter, Backend],
) -> None:
    router, backend = served
    begun, release = threading.Semaphore(0), asyncio.Event()

    async def holds(_: Backend, writer: asyncio.StreamWriter) -> None:
        begun.release()
        await release.wait()
        writer.write(answer())

    backend.do(holds)
    with raw(router.port) as one, raw(router.port) as two, raw(router.port) as three:
        for client in (one, two):
            client.send(chat("a"))
            assert begun.acquire(timeout=20)
        three.send(chat("b"))
        assert three.silent(0.5), "it did not wait"
        for _ in range(6):
            assert router.post(b'{"model":"c","messages":[]}')[0] == 200, "it has another server"
        assert not begun.acquire(blocking=False)
        backend.loop.loop.call_soon_threadsafe(release.set)
        assert [client.json()[0] for client in (one, two, three)] == [200] * 3


def test_a_refused_connection_is_known_to_other_models(
    served: tuple[RunningRouter, Backend],
) -> None:
    router, backend = served
    backend.say(answer())
    for model in "abc":
        body = b'{"model":"%s","messages":[]}' % model.encode()
        until(lambda body=body: router.post(body)[0] == 200)  # type: ignore[misc]
    backend.stop()
    try:
        assert router.post(b'{"model":"a","messages":[]}')[0] == 502
        until(lambda: "by a request for another model" in router.log)
    finally:
        backend.start()
    for model in "abc":
        body = b'{"model":"%s","messages":[]}' % model.encode()
        until(lambda body=body: router.post(body)[0] == 200)  # type: ignore[misc]
