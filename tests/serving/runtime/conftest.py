"""Real llama.cpp servers, each behind a tap."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.needs import need
from tests.serving.runtime.replicas import Replica, three_replicas
from tests.serving.runtime.tiny_model import write_model
from tests.serving.tap import LoopThread, loop_thread


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_model(path)
    return path


@pytest.fixture(scope="module")
def taps() -> Iterator[LoopThread]:
    with loop_thread() as thread:
        yield thread


@pytest.fixture(scope="module")
def module_replicas(
    taps: LoopThread, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Replica]]:
    need("libgomp.so.1")
    with three_replicas(taps, model, tmp_path_factory.mktemp("replicas")) as made:
        yield made


@pytest.fixture
def replicas(module_replicas: list[Replica]) -> list[Replica]:
    """All of them alive and quick, with nothing asked yet."""
    for replica in module_replicas:
        replica.mend()
    return module_replicas
