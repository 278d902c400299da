"""Fixtures of the launcher's tests."""

import signal
from collections.abc import Iterator

import pytest

from tests.launchjob import Place, place

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


@pytest.fixture
def here() -> Iterator[Place]:
    """A private place in which nothing may be left behind."""
    with place() as found:
        yield found


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """What a launch in this process leaves as signal handlers ends with its test."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
