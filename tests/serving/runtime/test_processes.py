"""The router's own processes are killed: the others go on, or end."""

import os
import signal
from collections.abc import Iterator

import pytest

from tests.serving.running import RunningRouter, running_router, until
from tests.serving.runtime.load import chat
from tests.serving.runtime.replicas import Replica


@pytest.fixture
def router(replicas: list[Replica]) -> Iterator[RunningRouter]:
    endpoints = [{"url": replica.url, "runtime": "llamacpp"} for replica in replicas]
    config = {"models": {"tiny": {"endpoints": endpoints}}, "workers": 2}
    with running_router(config) as running:
        until(lambda: len(running.workers()) == 2)
        yield running


def test_a_killed_worker_is_replaced(router: RunningRouter) -> None:
    victim, other = router.workers()
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(set(router.workers()) - {victim}) == 2, what="it was not replaced")
    assert other in router.workers()

    def answers() -> bool:
        try:
            return router.post(chat("x", tokens=4))[0] == 200
        except OSError:  # the dead worker's queue of connections
            return False

    until(answers)
    for _ in range(10):
        assert answers()


def test_workers_end_when_their_control_process_is_killed(router: RunningRouter) -> None:
    assert router.post(chat("x", tokens=4))[0] == 200
    router.process.kill()
    router.process.wait(10)
    until(lambda: not router.workers(), what="workers went on alone")
