"""The copy of the store's keys: what comes, what stays while the store is away, what is written."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trainmesh.errors import StoreError
from trainmesh.serving.cluster.store_cache import MAX_COPY_BYTES, StoreCache
from trainmesh.store.base import Store
from trainmesh.store.embedded import EmbeddedEtcd
from trainmesh.store.etcd import connect
from trainmesh.store.memory import MemoryStore

DEADLINE_S = 20.0


def until(true: Callable[[], object], what: str) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < end_s, f"never: {what}"
        time.sleep(0.01)


class Shared(MemoryStore):
    """Outlives the sessions that use it."""

    def close(self) -> None:
        pass


@pytest.fixture
def store() -> Iterator[Shared]:
    shared = Shared()
    yield shared
    MemoryStore.close(shared)


@pytest.fixture
def store_cache(store: Shared) -> Iterator[StoreCache]:
    found = StoreCache(lambda: store, ["/a/", "/b/"], lambda: None)
    found.start()
    yield found
    found.close()


def values(store_cache: StoreCache, prefix: str = "/") -> dict[str, bytes]:
    return {key: copy.value for key, copy in store_cache.under(prefix).items()}


def test_what_is_there_and_what_comes_is_copied(store: Shared, store_cache: StoreCache) -> None:
    store.put("/a/1", b"x")
    store.put("/c/1", b"not ours")
    until(lambda: values(store_cache) == {"/a/1": b"x"}, "a first copy")
    store.put("/b/1", b"y")
    store.put("/a/1", b"z")
    until(lambda: values(store_cache) == {"/a/1": b"z", "/b/1": b"y"}, "changes")
    assert values(store_cache, "/b/") == {"/b/1": b"y"}
    store.delete("/a/")
    until(lambda: values(store_cache) == {"/b/1": b"y"}, "a deletion")
    store.put("/a/2", b"0" * (MAX_COPY_BYTES + 1))
    store.put("/a/3", b"small")
    until(lambda: "/a/3" in values(store_cache), "the next key")
    assert "/a/2" not in values(store_cache)


def test_what_we_publish_goes_when_we_go_and_what_we_put_stays(
    store: Shared, store_cache: StoreCache
) -> None:
    store_cache.publish("/r/me", b"1")
    store_cache.put("/a/word", b"2")
    until(lambda: store.get("/r/me") and store.get("/a/word"), "both are written")
    store_cache.publish("/r/me", b"3")
    until(lambda: (e := store.get("/r/me")) and e.value == b"3", "the newer one")
    store_cache.close()
    assert store.get("/r/me") is None
    assert store.get("/a/word") is not None


def test_a_store_that_is_not_there_is_tried_again() -> None:
    tries: list[int] = []
    store = Shared()

    def later() -> Store:
        tries.append(1)
        if len(tries) < 3:
            raise StoreError("etcd at nowhere: refused")
        return store

    heard = threading.Event()
    store_cache = StoreCache(later, ["/a/"], heard.set)
    assert store_cache.problem == "not connected yet"
    store_cache.put("/a/word", b"early")
    store_cache.start()
    try:
        until(lambda: store_cache.problem == "etcd at nowhere: refused", "the problem is named")
        assert heard.is_set()
        until(lambda: store_cache.problem == "", "it is there")
        until(lambda: store.get("/a/word"), "what was said before is written")
    finally:
        store_cache.close()
        MemoryStore.close(store)


@pytest.mark.etcd
def test_a_killed_etcd_is_waited_for_and_nothing_is_forgotten(tmp_path: Path) -> None:
    server = EmbeddedEtcd(tmp_path / "data", tmp_path / "log")
    server.start()
    server.wait_ready(20)
    admin = connect(server.url)
    store_cache = StoreCache(lambda: connect(server.url), ["/a/"], lambda: None)
    store_cache.start()
    try:
        store_cache.publish("/a/me", b"state")
        admin.put("/a/verdict", b"v1")
        until(lambda: len(values(store_cache)) == 2, "both are copied")
        server.stop()
        until(lambda: store_cache.problem, "it is noticed")
        store_cache.put("/a/word", b"said meanwhile")
        assert values(store_cache)["/a/verdict"] == b"v1"
        server.start()
        server.wait_ready(20)
        admin.put("/a/verdict", b"v2")
        wanted = {"/a/me": b"state", "/a/verdict": b"v2", "/a/word": b"said meanwhile"}
        until(lambda: values(store_cache) == wanted, "everything is as it should be")
        until(lambda: store_cache.problem == "", "it answers")
        store_cache.close()
        assert admin.get("/a/me") is None
    finally:
        store_cache.close()
        admin.close()
        server.stop()
