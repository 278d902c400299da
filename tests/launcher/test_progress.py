"""The live line and the event lines."""

import fcntl
import io
import os
import pty
import struct
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.launcher.records import RING
from trainmesh.launcher.run.progress import Progress, event_line, new_events, status_line
from trainmesh.rundir import RunDir, write_atomically
from trainmesh.types import Event, JobStatus
from trainmesh.wire import encode

SWITCH = Event(unix_s=2.0, step=64, kind="switch", text="step 64: all 4 ranks switched to ring")
PLAN = Event(unix_s=1.0, step=40, kind="plan", text="plan of epoch 1 from step 41: ring")
AGENT = Event(unix_s=3.0, step=70, kind="agent", text="an agent came back")
STATUS = JobStatus(
    job="j",
    updated_unix_s=5.0,
    world_size=4,
    step=70,
    step_time_s=0.0125,
    exposed_share=0.25,
    loss=1.5,
    epoch=1,
    plan=RING,
    events=(PLAN, SWITCH, AGENT),
)
LINE = (
    "trainmesh: step 70, loss 1.5000, 12.5 ms a step, 25.0 % of it waiting on communication, "
    "plan ring"
)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def until(done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_the_line() -> None:
    assert status_line(STATUS) == LINE
    one = status_line(JobStatus(job="j", updated_unix_s=0.0, world_size=1))
    assert "one rank, which has nobody to communicate with" in one
    assert "loss" not in one
    assert "%" not in one
    switched = status_line(replace(STATUS, exposed_share=None))
    assert "waiting on communication not measured yet, plan ring" in switched
    begins = status_line(replace(STATUS, step=0, step_time_s=None))
    assert begins.startswith("trainmesh: step 0, loss 1.5000, no step is over yet, ")
    assert status_line(JobStatus(job="j", updated_unix_s=0.0)) == "trainmesh: waiting for the ranks"


def test_an_event_names_its_step_once() -> None:
    assert event_line(SWITCH) == "trainmesh: step 64: all 4 ranks switched to ring"
    assert event_line(PLAN) == "trainmesh: step 40: plan of epoch 1 from step 41: ring"


def test_only_new_and_important_events_are_shown() -> None:
    assert new_events(STATUS, None) == [PLAN, SWITCH]
    assert new_events(STATUS, PLAN) == [SWITCH]
    assert new_events(STATUS, AGENT) == []


@pytest.mark.parametrize(("mode", "numbers"), [("auto", False), ("on", True)])
def test_without_a_terminal_there_are_plain_lines(run: RunDir, mode: str, numbers: bool) -> None:
    stream = io.StringIO()
    progress = Progress(run, mode, stream)
    progress.start()
    write_atomically(run.status, encode(STATUS))
    until(lambda: "switched" in stream.getvalue())
    write_atomically(run.status, encode(STATUS))
    progress.stop()
    expected = [event_line(PLAN), event_line(SWITCH), *([LINE] if numbers else [])]
    assert stream.getvalue().splitlines() == expected


def test_what_came_last_is_still_shown_at_the_end(run: RunDir) -> None:
    stream = io.StringIO()
    progress = Progress(run, "auto", stream)
    progress.start()
    write_atomically(run.status, encode(STATUS))
    progress.stop()
    assert "switched" in stream.getvalue()


def test_off_shows_nothing(run: RunDir) -> None:
    write_atomically(run.status, encode(STATUS))
    stream = io.StringIO()
    progress = Progress(run, "off", stream)
    progress.start()
    progress.stop()
    assert stream.getvalue() == ""


@pytest.mark.parametrize("content", [b"", b"{", b'{"job":3}'])
def test_a_damaged_status_is_passed_over(run: RunDir, content: bytes) -> None:
    run.status.write_bytes(content)
    stream = io.StringIO()
    progress = Progress(run, "on", stream)
    progress.start()
    progress.stop()
    assert stream.getvalue() == ""


def test_a_closed_stream_ends_it_quietly(run: RunDir) -> None:
    write_atomically(run.status, encode(STATUS))
    stream = io.StringIO()
    progress = Progress(run, "on", stream)
    stream.close()
    progress.start()
    progress.stop()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, io.TextIOWrapper]]:
    """The master's end, and the terminal of 24 rows and 60 columns."""
    monkeypatch.setenv("TERM", "xterm")
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    with os.fdopen(slave, "w") as stream:
        yield master, stream
    os.close(master)


def test_in_a_terminal_the_line_has_a_row_of_its_own(
    run: RunDir, terminal: tuple[int, io.TextIOWrapper]
) -> None:
    master, stream = terminal
    write_atomically(run.status, encode(STATUS))
    progress = Progress(run, "auto", stream)
    progress.start()
    shown = ""
    while LINE[:59] not in shown:
        shown += os.read(master, 4096).decode()
    progress.stop()
    os.set_blocking(master, False)
    try:
        while chunk := os.read(master, 4096):
            shown += chunk.decode()
    except BlockingIOError:
        pass
    assert "\x1b[1;23r" in shown  # rows 1 to 23 scroll
    assert f"\x1b7\x1b[24;1H\x1b[2K{LINE[:59]}\x1b8" in shown
    assert LINE[:60] not in shown
    assert "trainmesh: step 64: all 4 ranks switched to ring\r\n" in shown
    assert shown.endswith("\x1b7\x1b[24;1H\x1b[2K\x1b[r\x1b8")


def test_a_dumb_terminal_is_none(
    run: RunDir, terminal: tuple[int, io.TextIOWrapper], monkeypatch: pytest.MonkeyPatch
) -> None:
    master, stream = terminal
    monkeypatch.setenv("TERM", "dumb")
    write_atomically(run.status, encode(STATUS))
    progress = Progress(run, "auto", stream)
    progress.start()
    progress.stop()
    assert "\x1b" not in os.read(master, 4096).decode()
