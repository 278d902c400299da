"""Services are kept running, within limits, and ended."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launchjob import ROOT, wait_for
from tests.needs import need_root
from trainmesh.console import note, say
from trainmesh.launcher.run.service import (
    MAX_RESTARTS,
    NICENESS,
    PythonProcess,
    Service,
    restart_delay_s,
    why_ended,
)
from trainmesh.launcher.run.supervisor import ServiceKeeper, Supervisor
from trainmesh.launcher.run.troubles import Troubles, read_told
from trainmesh.process_health import HealthReporter, ProcessHealth
from trainmesh.wire import decode, encode


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    folder = tmp_path / "modules"
    folder.mkdir()
    stay = """
        import os, signal, sys
        def end(*_):
            print("end", file=sys.stderr)
            sys.exit()
        signal.signal(signal.SIGTERM, end)
        print("begin", os.getpid(), file=sys.stderr)
        os.read(0, 1)
        print("end of input", file=sys.stderr)
    """
    (folder / "stay.py").write_text(textwrap.dedent(stay))
    (folder / "these.dist-info").mkdir()  # where packages are installed, our processes look
    (folder / "crash.py").write_text("raise SystemExit('no reason')")
    return folder


def service(module: str, modules: Path, tmp_path: Path, name: str = "") -> Service:
    log = tmp_path / f"{name or module}.log"
    environment = {**os.environ, "PYTHONPATH": str(modules)}
    return Service(name or module, log, PythonProcess(module, environment, log))


def pids(log: Path) -> list[int]:
    text = log.read_text() if log.exists() else ""
    return [int(line.split()[1]) for line in text.splitlines() if line.startswith("begin ")]


def supervisor_of(*services: Service, restore: Callable[[], bool] = lambda: False) -> Supervisor:
    troubles = Troubles(services[0].log.parent / "troubles.json", say)
    return Supervisor(services, lambda: None, troubles, restore)


@pytest.mark.parametrize(
    ("quick_ends", "expected_s"),
    [(1, 0.2), (2, 0.4), (5, 3.2), (6, 6.4), (9, 51.2), (10, 60.0), (100_000, 60.0)],
)
def test_restart_delays(quick_ends: int, expected_s: float) -> None:
    assert restart_delay_s(quick_ends) == pytest.approx(expected_s)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", ""), ("\n\n", ""), ("a\nb\n\n", "b"), ("x" * 10_000, "x" * 300)],
)
def test_last_words(tmp_path: Path, text: str, expected: str) -> None:
    log = tmp_path / "log"
    log.write_text(f"of its last life\n{text}")
    assert why_ended(1, log, 17) == expected
    assert why_ended(-9, log, 17) == "", "a signal comes from outside"
    assert why_ended(1, tmp_path / "missing", 0) == ""


def test_what_was_only_noted_is_no_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note("store: nothing answers\nat all")
    log = tmp_path / "log"
    log.write_text(f"trainmesh: error: the reason\n{capsys.readouterr().err}")
    assert why_ended(1, log, 0) == "trainmesh: error: the reason"
    assert why_ended(1, log, log.read_text().index("note")) == ""


@pytest.mark.root
def test_a_full_disk_is_the_reason_that_the_log_has_not_taken(tmp_path: Path) -> None:
    need_root()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        log = tmp_path / "log"
        log.touch()
        assert why_ended(1, log, 0) == ""
        (tmp_path / "fill").write_bytes(bytes(64 * 1024))
        full = f"nothing can be written in {tmp_path}: No space left on device"
        assert why_ended(1, log, 0) == full
        assert why_ended(-9, log, 0) == ""
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.starts
def test_what_is_killed_is_started_again(
    modules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stay = service("stay", modules, tmp_path)
    supervisor = supervisor_of(stay)
    supervisor.start()
    try:
        wait_for(lambda: len(pids(stay.log)) == 1)
        os.kill(pids(stay.log)[0], signal.SIGKILL)
        wait_for(lambda: len(pids(stay.log)) == 2)
    finally:
        supervisor.stop()
    assert stay.log.read_text().endswith("end\n")
    assert stay.process.poll() == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["trainmesh: the stay ended with signal 9 and is started again"]


class Scripted:
    """A process that ends when the test says so."""

    def __init__(self) -> None:
        self.starts = 0
        self.code: int | None = None
        self.lines: list[bytes] = []

    def start(self) -> None:
        self.starts += 1
        self.code = None

    def poll(self) -> int | None:
        return self.code

    def stop(self) -> None:
        self.code = 0

    def heard(self) -> list[bytes]:
        lines, self.lines = self.lines, []
        return lines


class Looked:
    """A keeper of a scripted process, and what is said, on a clock of the test's."""

    def __init__(self, tmp_path: Path) -> None:
        self.said: list[str] = []
        self.path = tmp_path / "troubles.json"
        self.process = Scripted()
        self.troubles = Troubles(self.path, self.said.append)
        self.keeper = ServiceKeeper(Service("agent", tmp_path / "log", self.process), self.troubles)
        self.now_s = 0.0

    def run(self, seconds: int, *, dies: bool = False) -> None:
        for _ in range(seconds * 10):
            if dies and self.process.starts:
                self.process.code = 1
            self.keeper.look(self.now_s)
            self.troubles.look(self.now_s)
            self.now_s += 0.1


def test_what_keeps_ending_is_said_and_tried_again_for_ever(tmp_path: Path) -> None:
    looked = Looked(tmp_path)
    looked.run(10, dies=True)
    assert 4 <= looked.process.starts <= 7
    before = looked.process.starts
    looked.run(3600, dies=True)
    assert 55 <= looked.process.starts - before <= 66, "about once a minute, and never given up"
    *ends, said = looked.said
    assert ends == ["the agent ended with exit code 1 and is started again"], "said once"
    assert said.startswith("warning: the agent keeps ending and is tried again about once a")
    assert [trouble.text for trouble in read_told(looked.path).troubles] == [
        said.removeprefix("warning: ")
    ]
    looked.run(60 + 61)  # it is started, and lives
    assert looked.said[-1] == f"over: {said.removeprefix('warning: ')}"
    assert read_told(looked.path).troubles == ()
    assert len(read_told(looked.path).events) == MAX_RESTARTS + 2
    told = [line.event.text for line in looked.troubles.lines() if line.event is not None]
    assert ["keeps ending" in text for text in told] == [False] * MAX_RESTARTS + [True] * 2


@pytest.mark.parametrize("looks", [0, 1])
def test_an_end_just_before_the_job_s_is_recorded(tmp_path: Path, looks: int) -> None:
    """Whether or not the supervisor has looked once more before the job is over."""
    looked = Looked(tmp_path)
    looked.run(1)
    looked.process.code = -9
    for _ in range(looks):
        looked.keeper.look(looked.now_s)
    looked.keeper.look_at_end()
    [line] = looked.troubles.lines()
    event = line.event
    assert event is not None
    assert event.kind == "process"
    assert event.text.startswith("the agent ended with signal 9 ")
    assert read_told(looked.path).events == (event,)


@pytest.mark.parametrize("code", [None, -signal.SIGINT, -signal.SIGTERM])
def test_a_process_that_the_end_itself_ends_has_nothing_to_tell(
    tmp_path: Path, code: int | None
) -> None:
    """Ctrl-C reaches it too where it comes just when it is started."""
    looked = Looked(tmp_path)
    looked.run(1)
    looked.process.code = code
    looked.keeper.look_at_end()
    assert looked.said == []


def test_what_a_process_tells_is_said_when_it_lasts(tmp_path: Path) -> None:
    looked = Looked(tmp_path)
    looked.run(1)
    looked.process.lines = [b"a library's words", encode(ProcessHealth(about="store", text="full"))]
    looked.run(3)
    looked.process.lines = [encode(ProcessHealth(about="store", text=""))]
    looked.run(10)
    assert looked.said == [], "a short interruption is nobody's concern"
    looked.process.lines = [encode(ProcessHealth(about="store", text="full"))]
    looked.run(10)
    looked.process.lines = [encode(ProcessHealth(about="store", text="full of it"))]
    looked.run(10)
    assert looked.said == ["warning: full"], "said once"
    looked.process.code = 1
    looked.run(2)
    ended = "the agent ended with exit code 1 and is started again"
    assert looked.said[1:] == [ended, "over: full"], "a new process tells anew"


@pytest.mark.starts
def test_a_place_made_anew_starts_everything_again(modules: Path, tmp_path: Path) -> None:
    stay = service("stay", modules, tmp_path)
    gone = threading.Event()

    def restore() -> bool:
        if not gone.is_set():
            return False
        gone.clear()
        return True

    supervisor = supervisor_of(stay, restore=restore)
    supervisor.start()
    try:
        wait_for(lambda: len(pids(stay.log)) == 1)
        gone.set()
        wait_for(lambda: len(pids(stay.log)) == 2)
    finally:
        supervisor.stop()


def full_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_health_reporter_tells_changes_and_never_blocks() -> None:
    reading, writing = os.pipe()
    reporter = HealthReporter(writing)
    for text in ("full", "full", "", "", "full"):
        reporter.set("store", text)
    with pytest.raises(ZeroDivisionError), reporter.writing(Path("x")):
        raise ZeroDivisionError
    with reporter.writing(Path("x")):
        full_disk()
    lines = os.read(reading, 65_536).splitlines()
    told = [decode(line, ProcessHealth, what="line") for line in lines]
    assert [(each.about, each.text) for each in told] == [
        ("store", "full"),
        ("store", ""),
        ("store", "full"),
        ("files", "can't write x: No space left on device"),
    ]
    for number in range(100_000):
        reporter.set("store", str(number))
    os.close(reading)
    reporter.set("store", "nobody reads")
    os.close(writing)
    reporter.set("store", "closed")


@pytest.mark.starts
def test_services_end_in_the_reverse_order(modules: Path, tmp_path: Path) -> None:
    first, second = (service("stay", modules, tmp_path, name) for name in ("first", "second"))
    supervisor = supervisor_of(first, second)
    supervisor.start()
    wait_for(lambda: pids(first.log) and pids(second.log))
    supervisor.stop()
    supervisor.stop()
    assert second.log.stat().st_mtime_ns <= first.log.stat().st_mtime_ns
    assert not any(thread.name == "supervisor" for thread in threading.enumerate())


def test_stop_without_start(modules: Path, tmp_path: Path) -> None:
    supervisor_of(service("stay", modules, tmp_path)).stop()


@pytest.mark.starts
def test_a_service_has_its_own_session_and_a_lower_priority(modules: Path, tmp_path: Path) -> None:
    stay = service("stay", modules, tmp_path)
    stay.process.start()
    try:
        wait_for(lambda: pids(stay.log))
        (pid,) = pids(stay.log)
        assert os.getsid(pid) == pid
        assert os.getpriority(os.PRIO_PROCESS, pid) == min(
            19, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS
        )
    finally:
        stay.process.stop()


def test_a_job_that_is_niced_already_is_no_exception() -> None:
    """As an ordinary user it once ended at the start: nobody else may lower a niceness again."""
    this = f"{__file__}::test_a_service_has_its_own_session_and_a_lower_priority"
    command = ["nice", "-n", "7", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, this], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.starts
def test_a_service_ends_when_its_owner_is_gone(modules: Path, tmp_path: Path) -> None:
    stay = service("stay", modules, tmp_path)
    stay.process.start()
    wait_for(lambda: pids(stay.log))
    assert isinstance(stay.process, PythonProcess)
    assert stay.process._process is not None
    assert stay.process._process.stdin is not None
    stay.process._process.stdin.close()  # what the kernel does for a dead owner
    wait_for(lambda: stay.process.poll() is not None)
    stay.process.stop()
    assert "end of input" in stay.log.read_text()
