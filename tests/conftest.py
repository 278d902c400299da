"""Fixtures that several test files share."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from trainmesh.store.embedded import EmbeddedEtcd

pytest_plugins = ["tests.quick"]

# How long an example takes says how busy the machine is, not that something is wrong.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def etcd_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real etcd for tests that leave it running; use a key prefix of your own."""
    folder = tmp_path_factory.mktemp("etcd")
    server = EmbeddedEtcd(folder / "data", folder / "log")
    server.start()
    try:
        server.wait_ready(20)
        yield server.url
    finally:
        server.stop()
