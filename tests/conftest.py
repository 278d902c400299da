"""Fixtures that several test files share."""

from collections.abc import Iterator

import pytest

from trainmesh.embedded_etcd import EmbeddedEtcd


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
