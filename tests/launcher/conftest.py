"""Fixtures of the launcher's tests."""

from collections.abc import Iterator

import pytest

from tests.launchjob import Place, place


@pytest.fixture
def here() -> Iterator[Place]:
    """A private place in which nothing may be left behind."""
    with place() as found:
        yield found
