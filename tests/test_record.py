"""A run's record on a disk that is full."""

import os
from pathlib import Path

import pytest

from trainmesh.coordinator.record import RecordWriter, is_torn
from trainmesh.process_health import HealthReporter
from trainmesh.types import Event, RecordLine
from trainmesh.wire import decode, encode

LINE = RecordLine(event=Event(unix_s=1.0, step=0, kind="note", text="a note"))


def test_a_full_disk_costs_lines_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, told = os.pipe()
    path = tmp_path / "record.jsonl"
    path.write_bytes(b'{"torn":')
    with RecordWriter(path, HealthReporter(told)) as record:
        record.write([LINE])
        with monkeypatch.context() as patched, Path("/dev/full").open("wb", buffering=0) as full:
            patched.setattr(record, "_file", full)
            record.write([LINE])
        record.write([LINE, LINE])
    for end in (told,):
        os.close(end)
    with os.fdopen(reading, "rb") as lines:
        first, second = lines.read().splitlines()
    assert b"No space left on device" in first
    assert second == b'{"about":"files","text":""}'
    torn, one, lost, *two = path.read_bytes().split(b"\n")
    assert (torn, lost) == (b'{"torn":', b"")
    assert one == encode(LINE)
    assert [decode(line, RecordLine, what="line") for line in two[:-1]] == [LINE, LINE]
    assert not is_torn(path)
