"""A loop for backends that write down what they get."""

from collections.abc import Iterator

import pytest

from tests.serving.tap import LoopThread, loop_thread


@pytest.fixture(scope="module")
def taps() -> Iterator[LoopThread]:
    with loop_thread() as thread:
        yield thread
