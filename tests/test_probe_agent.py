"""The agent's part: it listens, measures and cleans up as the request says."""

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import replace

from tests.launchjob import wait_for
from trainmesh.probe.agent import Prober
from trainmesh.probe_types import (
    PairMeasure,
    ProbeAnswer,
    ProbeListener,
    ProbePair,
    ProbeRequest,
)
from trainmesh.store.memory import MemoryStore
from trainmesh.wire import decode, encode

pytestmark = pytest.mark.starts

PREFIX = "/trainmesh/jobs/test/"
MEASURED = "/trainmesh/measured/"
NODES = ("a", "b", "c")
REQUEST = ProbeRequest(
    id="one", token="ab" * 32, backend="gloo", nbytes=16_000_000, seconds=5.0, echoes=10
)
Tell = Callable[[ProbeRequest | None], None]


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    opened = MemoryStore()
    try:
        yield opened
    finally:
        opened.close()


@pytest.fixture
def tell(store: MemoryStore) -> Iterator[Tell]:
    """Tells the agents of all nodes about a request."""
    lease = store.lease(10)
    probers = [Prober(node, "http://127.0.0.1:2379", store, lease, "test") for node in NODES]

    def everybody(request: ProbeRequest | None) -> None:
        for prober in probers:
            prober.see(encode(request) if request is not None else None)

    try:
        yield everybody
    finally:
        for prober in probers:
            prober.close()
        assert not [t for t in threading.enumerate() if t.name.startswith("probe")]


def listeners(store: MemoryStore) -> dict[str, ProbeListener]:
    prefix = f"{PREFIX}probe/ready/"
    return {
        entry.key.removeprefix(prefix): decode(entry.value, ProbeListener, what=entry.key)
        for entry in store.list(prefix)[0]
    }


def ready(store: MemoryStore) -> dict[str, ProbeListener]:
    return wait_for(lambda: found if len(found := listeners(store)) == len(NODES) else None)


def pair(store: MemoryStore, src: str, dst: str) -> ProbePair:
    found = ready(store)[dst]
    return ProbePair(src=src, dst=dst, host=found.host, port=found.port)


def answer(store: MemoryStore, src: str, turn: int) -> PairMeasure:
    def look() -> PairMeasure | None:
        entry = store.get(f"{PREFIX}probe/answers/{src}")
        found = decode(entry.value, ProbeAnswer, what=entry.key) if entry else None
        return found.measure if found is not None and found.turn == turn else None

    return wait_for(look)


def listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def test_nobody_listens_before_a_request_or_after_it(store: MemoryStore, tell: Tell) -> None:
    tell(REQUEST)
    found = ready(store)
    assert all(one.host == "127.0.0.1" and listening(one.port) for one in found.values())
    assert all(one.ceiling_bytes_per_s > 0 for one in found.values())
    tell(None)
    wait_for(lambda: not store.list(PREFIX)[0])
    wait_for(lambda: not any(listening(one.port) for one in found.values()))


def test_only_the_source_of_a_pair_measures_it(store: MemoryStore, tell: Tell) -> None:
    tell(REQUEST)
    tell(replace(REQUEST, turn=1, pairs=(pair(store, "a", "b"),)))
    found = answer(store, "a", 1)
    assert (found.src, found.dst, found.problem) == ("a", "b", "")
    assert found.forward is not None
    assert [entry.key for entry in store.list(f"{PREFIX}probe/answers/")[0]] == [
        f"{PREFIX}probe/answers/a"
    ]
    tell(None)
    wait_for(lambda: not store.list(f"{PREFIX}probe/")[0])
    assert not store.list(PREFIX)[0]
    [kept] = store.list(MEASURED)[0]
    assert kept.key == f"{MEASURED}test/a/b"
    assert decode(kept.value, PairMeasure, what="kept") == found


def test_without_bytes_it_only_pings(store: MemoryStore, tell: Tell) -> None:
    tell(replace(REQUEST, nbytes=0, echoes=3))
    tell(replace(REQUEST, nbytes=0, echoes=3, turn=1, pairs=(pair(store, "c", "a"),)))
    found = answer(store, "c", 1)
    assert (found.round_trips.sent, found.round_trips.received) == (3, 3)
    assert (found.nbytes, found.forward, found.problem) == (0, None, "")
    assert not store.list(MEASURED)[0]


def test_a_newer_turn_ends_the_one_that_hangs(store: MemoryStore, tell: Tell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        stuck = ProbePair(src="a", dst="b", host="127.0.0.1", port=silent.getsockname()[1])
        tell(REQUEST)
        ready(store)
        tell(replace(REQUEST, seconds=500.0, turn=1, pairs=(stuck,)))
        peer, _ = silent.accept()
        with peer:
            tell(replace(REQUEST, turn=2, pairs=(pair(store, "a", "c"),)))
            assert answer(store, "a", 2).problem == ""


def test_close_ends_a_pair_that_hangs(store: MemoryStore) -> None:
    prober = Prober("a", "http://127.0.0.1:2379", store, store.lease(10), "test")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        stuck = ProbePair(src="a", dst="b", host="127.0.0.1", port=silent.getsockname()[1])
        prober.see(encode(replace(REQUEST, seconds=500.0, turn=1, pairs=(stuck,))))
        peer, _ = silent.accept()
        with peer:
            begin_s = time.monotonic()
            prober.close()
            assert time.monotonic() - begin_s < 60


def test_a_request_that_nobody_takes_away_ends_by_itself(store: MemoryStore, tell: Tell) -> None:
    tell(replace(REQUEST, open_s=0.3))
    wait_for(lambda: listeners(store))
    wait_for(lambda: not listeners(store))


def test_another_request_takes_the_place_of_the_first(store: MemoryStore, tell: Tell) -> None:
    tell(REQUEST)
    ready(store)
    tell(replace(REQUEST, id="two", token="cd" * 32))
    wait_for(lambda: {one.id for one in ready(store).values()} == {"two"})


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{}",
        b'{"id": "x", "token": "short", "backend": "gloo"}',
        encode(replace(REQUEST, seconds=1e9)),
        encode(replace(REQUEST, nbytes=2**60)),
        b"[" * 300_000,
    ],
)
def test_a_malformed_request_is_ignored_in_one_line(
    store: MemoryStore, capsys: pytest.CaptureFixture[str], value: bytes
) -> None:
    prober = Prober("a", "http://127.0.0.1:2379", store, store.lease(10), "test")
    try:
        prober.see(value)
        prober.see(encode(REQUEST))
        wait_for(lambda: listeners(store))
    finally:
        prober.close()
    said = capsys.readouterr().err
    assert said.startswith("note: probe: probe request: ")
    assert said.count("\n") == 1
    assert REQUEST.token not in said


def test_an_interface_that_is_not_there_is_reported(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nothing9")
    prober = Prober("a", "http://192.0.2.1:2379", store, store.lease(10), "test")
    try:
        prober.see(encode(REQUEST))
        found = wait_for(lambda: listeners(store))["a"]
    finally:
        prober.close()
    assert found.problem.startswith("GLOO_SOCKET_IFNAME=nothing9: no such interface")
    assert found.port == 0
