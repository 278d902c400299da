"""The store when etcd dies, hangs, is cut off, forgets or refuses."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sized
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from trainmesh.errors import FencedOut, LeaseLost, StoreError
from trainmesh.store.address import parse_url
from trainmesh.store.base import Change
from trainmesh.store.embedded import EmbeddedEtcd, find_etcd
from trainmesh.store.etcd import check, connect
from trainmesh.store.rpc import Connection, rpc

ROOT = Path(__file__).parent.parent
PATIENCE_S = 20


class Seen:
    """A watch's callback that keeps what it is told."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self._arrived = threading.Condition()

    def __call__(self, changes: list[Change]) -> None:
        with self._arrived:
            self.changes += changes
            self._arrived.notify_all()

    def wait(self, count: int) -> list[Change]:
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.changes) >= count, PATIENCE_S)
            return list(self.changes)


def eventually(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def has_grown(values: Sized, at_least: int) -> bool:
    return len(values) >= at_least


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedEtcd]:
    """An etcd that the test may mistreat."""
    etcd = EmbeddedEtcd(tmp_path / "data", tmp_path / "log")
    etcd.start()
    try:
        etcd.wait_ready(PATIENCE_S)
        yield etcd
    finally:
        if etcd.poll() is None and etcd.pid is not None:
            os.kill(etcd.pid, signal.SIGCONT)
        etcd.stop()


def restart(server: EmbeddedEtcd, number: signal.Signals) -> None:
    assert server.pid is not None
    os.kill(server.pid, number)
    eventually(lambda: server.poll() is not None)
    server.start()


def raw(url: str, call: Callable[[Connection], tuple[Any, Any]]) -> Any:
    """A request that the store has no method for."""
    connection = Connection(*parse_url(url)[:2], timeout_s=PATIENCE_S)
    try:
        return connection.call(*call(connection))
    finally:
        connection.close()


@pytest.mark.etcd
class TestRestarts:
    def test_a_watch_tells_everything_once_and_in_order(self, server: EmbeddedEtcd) -> None:
        store = connect(server.url, timeout_s=PATIENCE_S)
        live, replayed = Seen(), Seen()
        store.watch("/t/", live)
        stop = threading.Event()
        written: list[int] = []

        def write() -> None:
            while not stop.is_set():
                written.append(store.put("/t/n", str(len(written)).encode()))

        writer = threading.Thread(target=write)
        writer.start()
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
            eventually(partial(has_grown, written, len(written) + 20))
            restart(server, number)
        eventually(partial(has_grown, written, len(written) + 20))
        stop.set()
        writer.join()
        # A put whose answer was lost is sent again, so the history may hold a value twice.
        store.watch("/t/", replayed, start_revision=1)
        eventually(lambda: bool(replayed.changes) and replayed.changes[-1].revision == written[-1])
        history = replayed.wait(len(written))
        assert live.wait(len(history)) == history
        assert set(written) <= {change.revision for change in history}
        store.close()

    def test_leases_and_leadership_outlive_it(self, server: EmbeddedEtcd) -> None:
        store = connect(server.url, timeout_s=PATIENCE_S)
        lease = store.lease(10)
        leader = store.elect("/t/leader/", b"", lease, timeout_s=0)
        restart(server, signal.SIGKILL)
        assert store.elect("/t/leader/", b"", lease, timeout_s=0) == leader
        assert store.cas("/t/hint", b"", expected_revision=0, fence=leader) is not None
        assert not lease.lost
        store.close()

    def test_calls_end_in_time_while_it_is_down(self, server: EmbeddedEtcd) -> None:
        store = connect(server.url, timeout_s=0.5)
        lease = store.lease(10)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        eventually(lambda: server.poll() is not None)
        for call in (
            lambda: store.get("/t/a"),
            lambda: store.cas("/t/a", b"", expected_revision=0),
            lambda: store.watch("/t/", Seen()),
            lambda: store.lease(10),
            lambda: store.elect("/t/", b"", lease, timeout_s=0),
        ):
            with pytest.raises(StoreError, match=r"^etcd at 127\.0\.0\.1:\d+: [^\n]+$"):
                call()
        store.close()


@pytest.mark.etcd
class TestHanging:
    def test_calls_end_in_time_and_all_goes_on_after(self, server: EmbeddedEtcd) -> None:
        assert server.pid is not None
        store = connect(server.url, timeout_s=0.5)
        patient = connect(server.url, timeout_s=PATIENCE_S)
        seen = Seen()
        patient.watch("/t/", seen)
        os.kill(server.pid, signal.SIGSTOP)
        with pytest.raises(StoreError, match="no answer within 0.5 s"):
            store.get("/t/a")
        with pytest.raises(StoreError, match="no answer within 0.5 s"):
            store.watch("/t/", Seen())
        os.kill(server.pid, signal.SIGCONT)
        revision = patient.put("/t/a", b"1")
        assert seen.wait(1) == [Change("/t/a", b"1", revision)]
        store.close()
        patient.close()

    def test_a_leader_that_was_cut_off_is_fenced_out(self, server: EmbeddedEtcd) -> None:
        assert server.pid is not None
        store = connect(server.url, timeout_s=0.5)
        other = connect(server.url, timeout_s=PATIENCE_S)
        lease = store.lease(1)
        old = store.elect("/t/leader/", b"old", lease, timeout_s=0)
        assert old is not None
        os.kill(server.pid, signal.SIGSTOP)
        eventually(lambda: lease.lost)
        os.kill(server.pid, signal.SIGCONT)
        new = other.elect("/t/leader/", b"new", other.lease(30), timeout_s=PATIENCE_S)
        assert new is not None
        assert new.create_revision > old.create_revision
        with pytest.raises(FencedOut):
            other.cas("/t/hint", b"", expected_revision=0, fence=old)
        assert other.cas("/t/hint", b"", expected_revision=0, fence=new) is not None
        store.close()
        other.close()


@pytest.mark.etcd
def test_a_killed_leader_is_followed(etcd_url: str) -> None:
    code = (
        "import sys, time; from trainmesh.store.etcd import connect; s = connect(sys.argv[1]); "
        "s.elect('/killed/', b'old', s.lease(1), timeout_s=0); print('leads', flush=True); "
        "time.sleep(60)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, etcd_url], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    store = connect(etcd_url, timeout_s=PATIENCE_S)
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "leads\n"
        lease = store.lease(30)
        # The owner renews its lease: it still leads when the first time to live has gone by.
        assert store.elect("/killed/", b"new", lease, timeout_s=3) is None
        owner.kill()
    leader = store.elect("/killed/", b"new", lease, timeout_s=PATIENCE_S)
    assert leader is not None
    assert leader.value == b"new"
    store.close()


@pytest.mark.etcd
def test_a_revoked_lease_is_noticed(etcd_url: str) -> None:
    store = connect(etcd_url, timeout_s=PATIENCE_S)
    lease = store.lease(3)
    old = store.elect("/revoked/", b"", lease, timeout_s=0)
    request = rpc.LeaseRevokeRequest(ID=lease.number)  # type: ignore[attr-defined]
    raw(etcd_url, lambda connection: (connection.leases.LeaseRevoke, request))
    with pytest.raises(FencedOut):
        store.cas("/revoked-hint", b"", expected_revision=0, fence=old)
    with pytest.raises(LeaseLost):
        store.put("/revoked-key", b"", lease)
    eventually(lambda: lease.lost)
    store.close()


@pytest.mark.etcd
def test_after_compaction_a_watch_says_so_and_goes_on(etcd_url: str) -> None:
    store = connect(etcd_url, timeout_s=PATIENCE_S)
    first = store.put("/compacted/a", b"1")
    revision = store.put("/compacted/a", b"2")
    raw(
        etcd_url,
        lambda connection: (connection.kv.Compact, rpc.CompactionRequest(revision=revision)),
    )
    seen = Seen()
    store.watch("/compacted/", seen, start_revision=first)
    assert seen.wait(1)[0].resync
    last = store.put("/compacted/a", b"3")
    assert seen.wait(2)[1:] == [Change("/compacted/a", b"3", last)]
    store.close()


@pytest.mark.etcd
def test_a_watch_on_a_store_that_went_back_says_so_and_goes_on(etcd_url: str) -> None:
    """As after it was emptied: it would wait for revisions that are long to come."""
    store = connect(etcd_url, timeout_s=PATIENCE_S)
    revision = store.put("/back/a", b"1")
    seen = Seen()
    store.watch("/back/", seen, start_revision=revision + 1_000_000)
    assert seen.wait(1)[0].resync
    last = store.put("/back/a", b"2")
    assert seen.wait(2)[1:] == [Change("/back/a", b"2", last)]
    store.close()


@pytest.mark.etcd
def test_a_cas_whose_answer_was_lost_counts(etcd_url: str) -> None:
    """Both for a write that was carried out and for one that was not."""
    store = connect(etcd_url, timeout_s=PATIENCE_S)
    with Cut(int(etcd_url.rpartition(":")[2])) as cut:
        through = connect(cut.url, timeout_s=PATIENCE_S)
        through.get("/cut/a")
        cut.lose_next_answer()
        revision = through.cas("/cut/a", b"mine", expected_revision=0)
        entry = store.get("/cut/a")
        assert entry is not None
        assert entry.mod_revision == revision
        cut.lose_next_answer()
        assert through.cas("/cut/a", b"late", expected_revision=0) is None
        through.close()
    store.close()


@pytest.mark.etcd
@pytest.mark.fault
@pytest.mark.soak  # pings are 10 s apart
def test_an_idle_watch_notices_that_it_is_cut_off(etcd_url: str) -> None:
    store = connect(etcd_url, timeout_s=PATIENCE_S)
    with Cut(int(etcd_url.rpartition(":")[2])) as cut:
        through = connect(cut.url, timeout_s=PATIENCE_S)
        seen = Seen()
        through.watch("/idle/", seen)
        cut.freeze()
        revision = store.put("/idle/a", b"1")
        assert seen.wait(1) == [Change("/idle/a", b"1", revision)]
        through.close()
    store.close()


class Cut:
    """A TCP relay in front of a port that can lose an answer, or go quiet."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._losing = threading.Event()
        self._frozen = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> "Cut":
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        for end in self._ends:
            end.close()

    def lose_next_answer(self) -> None:
        self._losing.set()

    def freeze(self) -> None:
        """Carry nothing any more on the connections there are; later ones work."""
        self._frozen = len(self._ends)

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._listener.accept()
            except OSError:
                return
            outer = socket.create_connection(("127.0.0.1", self._port))
            self._ends += [inner, outer]
            number = len(self._ends)
            for ends in ((inner, outer, False), (outer, inner, True)):
                self._threads.append(threading.Thread(target=self._relay, args=(number, *ends)))
                self._threads[-1].start()

    def _relay(
        self, number: int, source: socket.socket, sink: socket.socket, answers: bool
    ) -> None:
        try:
            while data := source.recv(65_536):
                # 24 bytes: more than a ping or a window update, less than any answer.
                if answers and self._losing.is_set() and len(data) > 24:
                    self._losing.clear()
                    break
                if number > self._frozen:
                    sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def add_root(url: str) -> None:
    """Switch authentication on, with one user."""
    connection = Connection(*parse_url(url)[:2], timeout_s=PATIENCE_S)
    auth = rpc.AuthStub(connection._client.channel)
    connection.call(auth.UserAdd, rpc.AuthUserAddRequest(name="root", password="secret"))
    connection.call(auth.RoleAdd, rpc.AuthRoleAddRequest(name="root"))
    connection.call(auth.UserGrantRole, rpc.AuthUserGrantRoleRequest(user="root", role="root"))
    connection.call(auth.AuthEnable, rpc.AuthEnableRequest())
    connection.close()


@pytest.mark.etcd
def test_with_users_it_logs_in_again_after_a_restart(server: EmbeddedEtcd) -> None:
    add_root(server.url)
    with pytest.raises(StoreError, match="user name is empty"):
        connect(server.url).get("/t/a")
    with pytest.raises(StoreError, match=r"invalid user ID or password$"):
        connect(server.url, user="root", password="wrong", timeout_s=PATIENCE_S)
    store = connect(server.url, user="root", password="secret", timeout_s=PATIENCE_S)
    # Stopped in order: after a crash etcd replays its log, and with it the newest tokens.
    restart(server, signal.SIGTERM)
    store.put("/t/a", b"")
    store.close()


@pytest.mark.etcd
def test_with_users_a_watch_logs_in_again_by_itself(server: EmbeddedEtcd) -> None:
    """etcd tells a watch "permission denied" when it only has forgotten its token."""
    add_root(server.url)
    store = connect(server.url, user="root", password="secret", timeout_s=5)
    restart(server, signal.SIGTERM)
    server.wait_ready(PATIENCE_S)
    seen = Seen()
    store.watch("/t/", seen)
    revision = store.put("/t/a", b"1")
    assert seen.wait(1) == [Change("/t/a", b"1", revision)]
    store.close()


@pytest.mark.etcd
def test_tls_with_a_certificate_authority(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        url = f"https://127.0.0.1:{one.getsockname()[1]}"
    arguments = ["--data-dir", str(tmp_path / "d"), "--auto-tls", "--listen-client-urls", url]
    more = ["--advertise-client-urls", url, "--listen-peer-urls", "http://127.0.0.1:0"]
    certificate = tmp_path / "d/fixtures/client/cert.pem"
    with (tmp_path / "log").open("wb") as log:
        etcd = subprocess.Popen([find_etcd(), *arguments, *more], stdout=log, stderr=log)
    with etcd:
        try:
            eventually(certificate.exists)
            store = connect(url, ca_cert=str(certificate), timeout_s=PATIENCE_S)
            check(store)
            store.close()
            plain = connect(url.replace("https", "http"), timeout_s=0.5)
            with pytest.raises(StoreError, match="etcd at"):
                check(plain)
            plain.close()
        finally:
            etcd.kill()
