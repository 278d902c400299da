"""The ledger: whole lines on disk, bounded, found again, never in the way."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from trainmesh.errors import ConfigError
from trainmesh.serving.config.types import Config, EndpointConfig, LedgerConfig, ModelConfig
from trainmesh.serving.ledger.reader import find_lines, read_lines
from trainmesh.serving.ledger.segments import Segment, ledger_dir, segments
from trainmesh.serving.ledger.writer import LedgerWriter

CONFIG = LedgerConfig(segment_bytes=65_536, segments=3)


class Line(Struct):
    request_id: str
    number: int
    padding: str = ""


def write(folder: Path, lines: list[Line], worker: int = 0, config: LedgerConfig = CONFIG) -> None:
    ledger = LedgerWriter(folder, worker, config)
    for line in lines:
        ledger.add(line)
        ledger.tick()
    ledger.close()
    assert (ledger.records, ledger.dropped) == (len(lines), 0)


def numbers(lines: list[bytes]) -> list[int]:
    return [msgspec.json.decode(line, type=Line).number for line in lines]


def test_what_is_added_is_read_back_in_order(tmp_path: Path) -> None:
    write(tmp_path, [Line(f"r{i}", i) for i in range(100)])
    assert numbers(list(read_lines(tmp_path))) == list(range(100))
    assert numbers(list(read_lines(segments(tmp_path)[0].path))) == list(range(100))


def test_it_never_takes_more_than_it_may(tmp_path: Path) -> None:
    write(tmp_path, [Line("r", i, "x" * 1000) for i in range(500)])
    files = segments(tmp_path)
    assert len(files) == CONFIG.segments
    assert all(each.path.stat().st_size <= CONFIG.segment_bytes for each in files)
    kept = numbers(list(read_lines(tmp_path)))
    assert kept == list(range(kept[0], 500)), "the newest, without a gap"


def test_a_restart_begins_a_new_segment_and_keeps_the_old_ones(tmp_path: Path) -> None:
    write(tmp_path, [Line("a", 1)])
    write(tmp_path, [Line("a", 2)])
    write(tmp_path, [Line("a", 3)], worker=1)
    assert [(each.worker, each.number) for each in segments(tmp_path)] == [(0, 0), (0, 1), (1, 0)]
    assert [each.number for each in segments(tmp_path, 0)] == [0, 1]


def test_all_lines_of_a_request_are_found_over_a_segment_boundary(tmp_path: Path) -> None:
    write(tmp_path, [Line("old", 1), Line("me", 2), Line("x", 3)])
    write(tmp_path, [Line("me", 4), Line("mean", 5), Line("not me", 6)])
    write(tmp_path, [Line("other", 7)], worker=1)
    assert numbers(find_lines(tmp_path, "me")) == [2, 4]
    assert find_lines(tmp_path, "nobody") == []
    assert find_lines(tmp_path / "missing", "me") == []


@settings(derandomize=True, max_examples=50, deadline=None)
@given(st.text(min_size=1))
def test_any_id_is_found(tmp_path_factory: pytest.TempPathFactory, request_id: str) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    write(folder, [Line("first", 0), Line(request_id, 1)])
    assert 1 in numbers(find_lines(folder, request_id))


def test_a_line_that_is_cut_short_is_skipped(tmp_path: Path) -> None:
    write(tmp_path, [Line("a", 1), Line("a", 2)])
    path = segments(tmp_path)[0].path
    path.write_bytes(path.read_bytes()[:-5])
    assert numbers(list(read_lines(tmp_path))) == [1]
    assert numbers(find_lines(tmp_path, "a")) == [1]


def test_a_worker_that_is_killed_leaves_whole_lines(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from trainmesh.serving.config.types import LedgerConfig\n"
        "from trainmesh.serving.ledger.writer import LedgerWriter\n"
        "ledger = LedgerWriter(Path(sys.argv[1]), 0, LedgerConfig())\n"
        "while True:\n"
        "    ledger.add({'request_id': 'k', 'number': ledger.records, 'padding': 'x' * 500})\n"
        "    ledger.tick()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, tmp_path])
    try:
        deadline_s = time.monotonic() + 30
        while sum(each.path.stat().st_size for each in segments(tmp_path)) < 200_000:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    found = numbers(list(read_lines(tmp_path)))
    assert found == list(range(len(found)))
    assert len(found) > 300


def test_a_full_disk_loses_lines_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = LedgerWriter(tmp_path, 0, CONFIG)
    ledger.add(Line("a", 1))
    ledger.tick()
    wait_for(lambda: len(list(read_lines(tmp_path))) == 1)
    real, full = os.write, True

    def write_a_little(fd: int, data: memoryview) -> int:
        if full and len(data) > 10:
            return real(fd, data[:10])
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(os, "write", write_a_little)
    for number in (2, 3):
        ledger.add(Line("a", number))
    ledger.tick()
    wait_for(lambda: ledger.dropped > 0)
    assert ledger.news() == f"{tmp_path}: No space left on device; records are lost"
    assert ledger.news() == "", "it is said once"
    full = False
    ledger.add(Line("a", 4))
    ledger.close()
    assert ledger.news() == f"{tmp_path}: records are written again; {ledger.dropped} were lost"
    assert ledger.news() == ""
    kept = [line for line in read_lines(tmp_path) if line.startswith(b"{") and line.endswith(b"}")]
    assert numbers(kept)[0] == 1
    assert numbers(kept)[-1] == 4
    assert ledger.dropped + len(kept) == ledger.records == 4


def test_a_disk_that_hangs_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = LedgerWriter(tmp_path, 0, CONFIG)
    real = os.write
    read_end, write_end = os.pipe()

    def hang(fd: int, data: memoryview) -> int:
        if b"padding" in bytes(data[:200]):
            os.read(read_end, 1)
        return real(fd, data)

    monkeypatch.setattr(os, "write", hang)
    while not ledger.dropped:
        ledger.add(Line("a", ledger.records, "x" * 10_000))
        assert ledger.records < 10_000
    assert "the disk can't keep up; records are lost" in ledger.news()
    monkeypatch.undo()
    real(write_end, b"g")
    ledger.close()
    os.close(read_end)
    os.close(write_end)
    newest = numbers(list(read_lines(tmp_path)))[-1]
    assert newest < ledger.records - 1, "what came while it hung is lost"


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"ledger\.dir: can't write to .*/file/x"):
        LedgerWriter(tmp_path / "file" / "x", 0, CONFIG)


def test_a_ledger_is_private(tmp_path: Path) -> None:
    write(tmp_path / "ledger", [Line("a", 1)])
    assert (tmp_path / "ledger").stat().st_mode & 0o077 == 0
    assert segments(tmp_path / "ledger")[0].path.stat().st_mode & 0o077 == 0


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "decisions-0-1.jsonl.bak").write_text("")
    (tmp_path / "notes").write_text("")
    assert segments(tmp_path) == []
    assert Segment.at(tmp_path, 3, 12).path.name == "decisions-3-00000012.jsonl"


def without_name(number: int) -> NoReturn:
    """As in containers: an id without a name."""
    raise KeyError(f"getpwuid(): uid not found: {number}")


def test_its_place_outlives_the_router_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    model = ModelConfig(endpoints=(EndpointConfig(url="http://127.0.0.1:1"),))
    config = Config(version=1, models={"m": model})
    assert ledger_dir(config) == Path("/state/trainmesh/serve/127.0.0.1-8080/ledger")
    named = msgspec.structs.replace(config, ledger=LedgerConfig(dir="/x"))
    assert ledger_dir(named) == Path("/x")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", without_name)
    assert ledger_dir(named) == Path("/x")
    with pytest.raises(ConfigError, match=r"no home .*; set XDG_STATE_HOME, or ledger\.dir"):
        ledger_dir(config)


def wait_for(true: object) -> None:
    assert callable(true)
    deadline_s = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
