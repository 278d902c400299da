"""Services are kept running, within limits, and ended."""

import os
import signal
import textwrap
import threading
from pathlib import Path

import pytest

from tests.launchjob import wait_for
from trainmesh.launcher.service import PythonProcess, Service, last_line, restart_delay_s
from trainmesh.launcher.supervisor import Keeper, Supervisor


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    folder = tmp_path / "modules"
    folder.mkdir()
    stay = """
        import os, signal, sys
        def end(*_):
            print("end", flush=True)
            sys.exit()
        signal.signal(signal.SIGTERM, end)
        print("begin", os.getpid(), flush=True)
        os.read(0, 1)
        print("end of input", flush=True)
    """
    (folder / "stay.py").write_text(textwrap.dedent(stay))
    (folder / "crash.py").write_text("raise SystemExit('no reason')")
    return folder


def service(module: str, modules: Path, tmp_path: Path, name: str = "") -> Service:
    log = tmp_path / f"{name or module}.log"
    environment = {**os.environ, "PYTHONPATH": str(modules)}
    return Service(name or module, log, PythonProcess(module, environment, log))


def pids(log: Path) -> list[int]:
    text = log.read_text() if log.exists() else ""
    return [int(line.split()[1]) for line in text.splitlines() if line.startswith("begin ")]


@pytest.mark.parametrize(
    ("ends_s", "now_s", "expected"),
    [
        ([10.0], 10.0, 0.2),
        ([10.0, 11.0], 11.0, 0.4),
        ([10.0, 11.0, 12.0, 13.0, 14.0], 14.0, 3.2),
        ([10.0, 11.0, 12.0, 13.0, 14.0, 15.0], 15.0, None),
        ([10.0, 11.0, 12.0, 13.0, 14.0, 75.0], 75.0, 0.2),
    ],
)
def test_restart_delays(ends_s: list[float], now_s: float, expected: float | None) -> None:
    delay_s = restart_delay_s(ends_s, now_s)
    assert delay_s == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", ""), ("\n\n", ""), ("a\nb\n\n", "b"), ("x" * 10_000, "x" * 300)],
)
def test_last_line(tmp_path: Path, text: str, expected: str) -> None:
    log = tmp_path / "log"
    log.write_text(text)
    assert last_line(log) == expected
    assert last_line(tmp_path / "missing") == ""


def test_what_is_killed_is_started_again(
    modules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stay = service("stay", modules, tmp_path)
    supervisor = Supervisor([stay], prepare=lambda: None)
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
    assert len(lines) == 1
    assert lines[0].startswith("trainmesh: the stay ended with signal 9 and is started again: ")


def test_what_keeps_crashing_is_left_alone(
    modules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crash = service("crash", modules, tmp_path)
    keeper = Keeper(crash)
    for now_s in range(0, 50, 5):  # starts and ends alternate; delays are shorter than 5 s
        keeper.look(now_s)
        wait_for(lambda: crash.process.poll() is not None)
        keeper.look(now_s)
    crash.process.stop()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert lines[0] == (
        "trainmesh: the crash ended with exit code 1 and is started again: no reason"
    )
    assert lines[-1].startswith("trainmesh: warning: the crash ended with exit code 1 once too")
    assert crash.log.read_text().count("no reason") == 6


def test_services_end_in_the_reverse_order(modules: Path, tmp_path: Path) -> None:
    first, second = (service("stay", modules, tmp_path, name) for name in ("first", "second"))
    supervisor = Supervisor([first, second], prepare=lambda: None)
    supervisor.start()
    wait_for(lambda: pids(first.log) and pids(second.log))
    supervisor.stop()
    supervisor.stop()
    assert second.log.stat().st_mtime_ns <= first.log.stat().st_mtime_ns
    assert not any(thread.name == "supervisor" for thread in threading.enumerate())


def test_stop_without_start() -> None:
    Supervisor([], prepare=lambda: None).stop()


def test_a_service_has_its_own_session_and_a_lower_priority(modules: Path, tmp_path: Path) -> None:
    stay = service("stay", modules, tmp_path)
    stay.process.start()
    try:
        wait_for(lambda: pids(stay.log))
        (pid,) = pids(stay.log)
        assert os.getsid(pid) == pid
        assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0) + 5
    finally:
        stay.process.stop()


def test_a_service_ends_when_its_owner_is_gone(modules: Path, tmp_path: Path) -> None:
    stay = service("stay", modules, tmp_path)
    stay.process.start()
    wait_for(lambda: pids(stay.log))
    assert isinstance(stay.process, PythonProcess)
    assert stay.process._process is not None
    assert stay.process._process.stdin is not None
    stay.process._process.stdin.close()  # what the kernel does for a dead owner
    wait_for(lambda: stay.process.poll() is not None)
    assert "end of input" in stay.log.read_text()
