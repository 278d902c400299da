"""The rank's end: never blocks, never raises, keeps what it can't send, counts what it drops."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainmesh.agent.rank import MAX_WAITING_STEPS, HintFile, SocketReporter
from trainmesh.rundir import write_atomically
from trainmesh.types import BucketTiming, Hello, Hint, Note, Plan, RankReport, StepReport
from trainmesh.wire import decode, encode

HELLO = Hello(
    rank=1,
    local_rank=1,
    world_size=2,
    node_rank=0,
    node="n",
    pid=7,
    clock="c",
    backend="gloo",
    device="cpu",
)


def step(number: int, buckets: int = 1) -> StepReport:
    timing = BucketTiming(0, 10, 1, 2, 3)
    return StepReport(1, 0, number, 0, 0, 5, None, (timing,) * buckets)


@pytest.fixture
def reporter(tmp_path: Path) -> Iterator[SocketReporter]:
    opened = SocketReporter(tmp_path / "sock", HELLO)
    yield opened
    opened.close()


@pytest.fixture
def inlet(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
        opened.bind(str(tmp_path / "sock"))
        opened.settimeout(2)
        yield opened


def receive(inlet: socket.socket) -> RankReport:
    return decode(inlet.recv(1 << 20), RankReport, what="datagram")


def test_steps_sent_before_the_agent_is_there_arrive_later(
    reporter: SocketReporter, tmp_path: Path
) -> None:
    for number in range(3):
        reporter.step(step(number))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inlet:
        inlet.bind(str(tmp_path / "sock"))
        reporter.flush()
        report = receive(inlet)
    assert report.hello == HELLO
    assert [s.step for s in report.steps] == [0, 1, 2]
    assert report.dropped == 0


def test_without_an_agent_the_oldest_steps_are_dropped_and_counted(
    reporter: SocketReporter, tmp_path: Path
) -> None:
    for number in range(MAX_WAITING_STEPS + 5):
        reporter.step(step(number))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inlet:
        inlet.bind(str(tmp_path / "sock"))
        inlet.setblocking(False)
        reporter.flush()
        report = receive(inlet)
    assert report.steps[0].step == 5
    assert report.dropped == 5


def test_large_batches_are_split_below_the_datagram_limit(
    inlet: socket.socket, reporter: SocketReporter, tmp_path: Path
) -> None:
    reporter._path = tmp_path / "absent"
    for number in range(10):
        reporter.step(step(number, buckets=400))
    reporter._path = tmp_path / "sock"
    reporter.flush()
    seen: list[int] = []
    while len(seen) < 10:
        seen += [s.step for s in receive(inlet).steps]
    assert seen == list(range(10))


def test_a_full_socket_loses_nothing_and_does_not_block(
    inlet: socket.socket, reporter: SocketReporter, tmp_path: Path
) -> None:
    for number in range(100):
        reporter.step(step(number))
        reporter.flush()
    seen: list[int] = []
    while len(seen) < 100:
        seen += [s.step for s in receive(inlet).steps]
        reporter.flush()
    assert seen == list(range(100))


def test_notes_are_sent_once(inlet: socket.socket, reporter: SocketReporter) -> None:
    reporter.note(Note(kind="warning", rank=1, text="x"))
    reporter.flush()
    assert [n.text for n in receive(inlet).notes] == ["x"]
    assert receive(inlet).notes == ()


def hint(epoch: int) -> Hint:
    plan = Plan(algorithm="ring", world_size=2, order=(0, 1))
    return Hint(job="j", epoch=epoch, effective_step=0, plan=plan, reason="")


def test_a_hint_is_read_once_when_its_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "hint.json"
    hints = HintFile(path)
    assert hints.poll() is None
    write_atomically(path, encode(hint(1)))
    assert hints.poll() == hint(1)
    assert hints.poll() is None
    write_atomically(path, encode(hint(2)))
    assert hints.poll() == hint(2)


def error_of(hints: HintFile) -> str | None:
    return hints.error


def test_a_damaged_hint_is_reported_and_a_good_one_after_it_read(tmp_path: Path) -> None:
    path = tmp_path / "hint.json"
    hints = HintFile(path)
    write_atomically(path, b'{"epoch":')
    assert hints.poll() is None
    assert error_of(hints) is not None
    write_atomically(path, encode(hint(1)))
    assert hints.poll() == hint(1)
    assert error_of(hints) is None
    os.unlink(path)
    assert hints.poll() is None
