"""The store's contract, on the store in memory and on a real etcd."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from trainmesh.clock import ManualClock
from trainmesh.errors import FencedOut, LeaseLost, StoreError
from trainmesh.store.base import Change, Store
from trainmesh.store.etcd import connect
from trainmesh.store.memory import KEPT_REVISIONS, MemoryStore

NUMBERS = itertools.count()
TTL_S = 30


class Seen:
    """A watch's callback that keeps what it is told."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.threads: set[int] = set()
        self._arrived = threading.Condition()

    def __call__(self, changes: list[Change]) -> None:
        with self._arrived:
            self.changes += changes
            self.threads.add(threading.get_ident())
            self._arrived.notify_all()

    def wait(self, count: int) -> list[Change]:
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.changes) >= count, 20), self.changes
            return list(self.changes)


def eventually(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


@pytest.fixture(params=["memory", pytest.param("etcd", marks=pytest.mark.etcd)])
def stores(request: pytest.FixtureRequest) -> Iterator[tuple[Store, Store]]:
    """Two owners' views of one store."""
    if request.param == "memory":
        memory = MemoryStore()
        yield memory, memory
        memory.close()
        return
    url = request.getfixturevalue("etcd_url")
    one, other = (connect(url, timeout_s=10) for _ in range(2))
    yield one, other
    one.close()
    other.close()


@pytest.fixture
def store(stores: tuple[Store, Store]) -> Store:
    return stores[0]


@pytest.fixture
def prefix() -> str:
    return f"/test/{next(NUMBERS)}/"


class TestStore:
    def test_a_value_comes_back_with_its_revisions(self, store: Store, prefix: str) -> None:
        first = store.put(f"{prefix}a", b"\x00\xff")
        second = store.put(f"{prefix}a", b"2")
        entry = store.get(f"{prefix}a")
        assert entry is not None
        assert (entry.key, entry.value) == (f"{prefix}a", b"2")
        assert (entry.create_revision, entry.mod_revision) == (first, second)
        assert first < second
        assert store.get(f"{prefix}b") is None

    def test_list_is_in_key_order_under_the_prefix_only(self, store: Store, prefix: str) -> None:
        for name in ("c", "a", "b"):
            store.put(f"{prefix}in/{name}", name.encode())
        last = store.put(f"{prefix}in0", b"just after the prefix")
        entries, revision = store.list(f"{prefix}in/")
        assert [entry.value for entry in entries] == [b"a", b"b", b"c"]
        assert revision >= last
        assert store.list(f"{prefix}none/")[0] == []

    def test_delete_takes_the_prefix_and_counts(self, store: Store, prefix: str) -> None:
        for name in ("x/a", "x/b", "y"):
            store.put(f"{prefix}{name}", b"")
        assert store.delete(f"{prefix}x/") == 2
        assert store.delete(f"{prefix}x/") == 0
        assert [entry.key for entry in store.list(prefix)[0]] == [f"{prefix}y"]

    def test_cas_writes_only_at_the_expected_revision(self, store: Store, prefix: str) -> None:
        key = f"{prefix}k"
        first = store.cas(key, b"1", expected_revision=0)
        assert first is not None
        assert store.cas(key, b"1", expected_revision=0) is None
        second = store.cas(key, b"2", expected_revision=first)
        assert second is not None
        assert store.cas(key, b"3", expected_revision=first) is None
        entry = store.get(key)
        assert entry is not None
        assert (entry.value, entry.mod_revision) == (b"2", second)

    def test_one_of_many_writers_wins_each_revision(self, store: Store, prefix: str) -> None:
        def add_ten() -> None:
            for _ in range(10):
                while True:
                    entry = store.get(f"{prefix}n")
                    value = str(int(entry.value) + 1 if entry else 1).encode()
                    expected = entry.mod_revision if entry else 0
                    if store.cas(f"{prefix}n", value, expected_revision=expected) is not None:
                        break

        threads = [threading.Thread(target=add_ten) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        entry = store.get(f"{prefix}n")
        assert entry is not None
        assert entry.value == b"40"

    def test_watch_from_now_on_tells_puts_and_deletes(self, store: Store, prefix: str) -> None:
        store.put(f"{prefix}old", b"")
        seen = Seen()
        watch = store.watch(prefix, seen)
        put = store.put(f"{prefix}a", b"1")
        store.put(f"{prefix[:-1]}0", b"beside the prefix")
        store.delete(f"{prefix}a")
        changes = seen.wait(2)
        watch.close()
        assert changes[0] == Change(f"{prefix}a", b"1", put)
        assert (changes[1].key, changes[1].value) == (f"{prefix}a", None)
        assert changes[1].revision > put
        assert len(changes) == 2

    def test_watch_from_a_revision_leaves_no_gap(self, store: Store, prefix: str) -> None:
        store.put(f"{prefix}0", b"")
        _, revision = store.list(prefix)
        for number in range(1, 4):
            store.put(f"{prefix}{number}", b"")
        seen = Seen()
        watch = store.watch(prefix, seen, start_revision=revision + 1)
        store.put(f"{prefix}4", b"")
        changes = seen.wait(4)
        watch.close()
        assert [change.key for change in changes] == [f"{prefix}{n}" for n in range(1, 5)]
        assert len(seen.threads) == 1

    def test_a_deleted_prefix_is_one_revision(self, store: Store, prefix: str) -> None:
        seen = Seen()
        watch = store.watch(prefix, seen)
        store.put(f"{prefix}a", b"")
        store.put(f"{prefix}b", b"")
        store.delete(prefix)
        changes = seen.wait(4)
        watch.close()
        assert {change.key for change in changes[2:]} == {f"{prefix}a", f"{prefix}b"}
        assert changes[2].revision == changes[3].revision > changes[1].revision

    def test_no_callback_after_close(self, store: Store, prefix: str) -> None:
        closed, witness = Seen(), Seen()
        store.watch(prefix, closed).close()
        watch = store.watch(prefix, witness)
        store.put(f"{prefix}a", b"")
        witness.wait(1)
        watch.close()
        assert closed.changes == []

    def test_a_watch_survives_its_receivers_bug(
        self, store: Store, prefix: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        seen = Seen()

        def receive(changes: list[Change]) -> None:
            seen(changes)
            raise LookupError("a bug")

        watch = store.watch(prefix, receive)
        store.put(f"{prefix}a", b"")
        seen.wait(1)
        store.put(f"{prefix}b", b"")
        seen.wait(2)
        watch.close()
        assert capfd.readouterr().err.count("LookupError: a bug") == 2

    def test_a_watch_can_be_closed_by_its_callback(self, store: Store, prefix: str) -> None:
        closed = threading.Event()

        def close_it(changes: list[Change]) -> None:
            watch.close()
            closed.set()

        watch = store.watch(prefix, close_it)
        store.put(f"{prefix}a", b"")
        assert closed.wait(20)

    def test_keys_end_with_their_lease(self, store: Store, prefix: str) -> None:
        lease = store.lease(TTL_S)
        store.put(f"{prefix}bound", b"", lease)
        store.put(f"{prefix}rebound", b"", lease)
        store.put(f"{prefix}rebound", b"without the lease now")
        lease.close()
        lease.close()
        assert [entry.key for entry in store.list(prefix)[0]] == [f"{prefix}rebound"]
        assert not lease.lost
        with pytest.raises(LeaseLost):
            store.put(f"{prefix}late", b"", lease)

    def test_the_longest_candidate_leads(self, stores: tuple[Store, Store], prefix: str) -> None:
        one, other = stores
        first, second = one.lease(TTL_S), other.lease(TTL_S)
        leader = one.elect(prefix, b"one", first, timeout_s=0)
        assert leader is not None
        assert leader.value == b"one"
        assert one.elect(prefix, b"one", first, timeout_s=0) == leader
        assert other.elect(prefix, b"other", second, timeout_s=0.05) is None
        first.close()
        following = other.elect(prefix, b"other", second, timeout_s=20)
        assert following is not None
        assert following.value == b"other"
        assert following.create_revision > leader.create_revision
        with pytest.raises(LeaseLost):
            one.elect(prefix, b"one", first, timeout_s=0)

    def test_a_place_in_the_election_is_kept(
        self, stores: tuple[Store, Store], prefix: str
    ) -> None:
        one, other = stores
        leases = [one.lease(TTL_S), other.lease(TTL_S), one.lease(TTL_S)]
        assert one.elect(prefix, b"0", leases[0], timeout_s=0) is not None
        assert other.elect(prefix, b"1", leases[1], timeout_s=0) is None
        assert one.elect(prefix, b"2", leases[2], timeout_s=0) is None
        leases[0].close()
        assert one.elect(prefix, b"2", leases[2], timeout_s=0) is None
        assert other.elect(prefix, b"1", leases[1], timeout_s=0) is not None

    def test_who_led_before_is_fenced_out(self, stores: tuple[Store, Store], prefix: str) -> None:
        one, other = stores
        first, second = one.lease(TTL_S), other.lease(TTL_S)
        old = one.elect(f"{prefix}leader/", b"one", first, timeout_s=0)
        assert old is not None
        revision = one.cas(f"{prefix}hint", b"1", expected_revision=0, fence=old)
        assert revision is not None
        assert one.cas(f"{prefix}hint", b"2", expected_revision=0, fence=old) is None
        first.close()
        new = other.elect(f"{prefix}leader/", b"other", second, timeout_s=20)
        with pytest.raises(FencedOut):
            one.cas(f"{prefix}hint", b"2", expected_revision=revision, fence=old)
        with pytest.raises(FencedOut):
            one.cas(f"{prefix}hint", b"2", expected_revision=0, fence=old)
        assert other.cas(f"{prefix}hint", b"3", expected_revision=revision, fence=new) is not None

    def test_a_foreign_lease_is_refused(self, store: Store, prefix: str) -> None:
        class Foreign:
            lost = False

            def close(self) -> None: ...

        with pytest.raises(TypeError, match="Foreign"):
            store.put(f"{prefix}a", b"", Foreign())
        with pytest.raises(TypeError, match="Foreign"):
            store.elect(prefix, b"", Foreign(), timeout_s=0)

    def test_close_ends_threads_leases_and_calls(
        self, stores: tuple[Store, Store], prefix: str
    ) -> None:
        before = set(threading.enumerate())
        one, other = stores
        lease = one.lease(TTL_S)
        one.put(f"{prefix}a", b"", lease)
        seen = Seen()
        other.watch(prefix, seen, start_revision=1)
        seen.wait(1)
        one.watch(prefix, seen)
        one.close()
        one.close()
        other.close()
        eventually(lambda: set(threading.enumerate()) <= before)
        for call in (
            lambda: one.get(prefix),
            lambda: one.watch(prefix, seen),
            lambda: one.lease(TTL_S),
        ):
            with pytest.raises(StoreError, match="closed"):
                call()


class TestMemoryStore:
    def test_a_suspended_lease_expires_by_the_clock(self, prefix: str) -> None:
        clock = ManualClock()
        store = MemoryStore(clock)
        seen = Seen()
        store.watch(prefix, seen)
        kept, suspended = store.lease(5), store.lease(5)
        store.put(f"{prefix}kept", b"", kept)
        store.put(f"{prefix}suspended", b"", suspended)
        suspended.suspend()
        clock.advance(4.9)
        assert [kept.lost, suspended.lost] == [False, False]
        clock.advance(0.1)
        assert [kept.lost, suspended.lost] == [False, True]
        assert seen.wait(3)[2].key == f"{prefix}suspended"
        assert [entry.key for entry in store.list(prefix)[0]] == [f"{prefix}kept"]
        with pytest.raises(LeaseLost):
            store.put(f"{prefix}suspended", b"", suspended)
        store.close()

    def test_who_waits_is_elected_when_the_leader_expires(self, prefix: str) -> None:
        clock = ManualClock()
        store = MemoryStore(clock)
        first, second = store.lease(5), store.lease(5)
        old = store.elect(prefix, b"one", first, timeout_s=0)
        first.suspend()
        waker = threading.Timer(0.05, clock.advance, [5])
        waker.start()
        new = store.elect(prefix, b"two", second, timeout_s=20)
        waker.join()
        assert new is not None
        assert new.value == b"two"
        with pytest.raises(FencedOut):
            store.cas(f"{prefix}hint", b"", expected_revision=0, fence=old)
        store.close()

    def test_who_is_far_behind_is_told_to_list_again(self, prefix: str) -> None:
        store = MemoryStore()
        for number in range(KEPT_REVISIONS + 10):
            last = store.put(f"{prefix}a", str(number).encode())
        seen = Seen()
        store.watch(prefix, seen, start_revision=1)
        changes = seen.wait(KEPT_REVISIONS)
        assert changes[0].resync
        assert [change.revision for change in changes[1:]] == list(
            range(changes[0].revision + 1, last + 1)
        )
        store.close()
