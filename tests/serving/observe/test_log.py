"""Logs: one JSON line per event, bounded in rate and in memory."""

import json
import logging
import os
import select
import threading
import time
from typing import Any

import pytest

from trainmesh.serving.observe import log
from trainmesh.serving.observe.log import ACCESS, BURST, CONTROL, LOGGER, Logs, RateLimit, log_event


def test_an_event_is_one_line_of_json() -> None:
    read_end, write_end = os.pipe()
    logs = Logs("worker-1", write_end)
    try:
        log_event(LOGGER, "ejected", level=logging.WARNING, endpoint="h:1", reason='a "b"\nc')
        logging.getLogger("asyncio").error("task %s failed", 3)
        try:
            raise ValueError("boom")
        except ValueError:
            LOGGER.exception("surprise")
        log_event(LOGGER, "unseen", level=logging.DEBUG)
    finally:
        logs.close()
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        first, second, third = map(json.loads, pipe)
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "warning",
        "event": "ejected",
        "process": "worker-1",
        "endpoint": "h:1",
        "reason": 'a "b"\nc',
    }
    assert second["event"] == "task 3 failed"
    assert "ValueError: boom" in third["traceback"]
    assert LOGGER.handlers == []


def test_on_a_terminal_it_is_words() -> None:
    ours, terminal = os.openpty()
    logs = Logs("worker-1", terminal)
    try:
        log_event(CONTROL, "control", what="serving\x1b[2J")
        log_event(LOGGER, "drain_cut_short", requests=3, reason="told to", endpoint="")
    finally:
        logs.close()
    os.close(terminal)
    said = os.read(ours, 4096).decode().splitlines()
    os.close(ours)
    assert said == [
        "trainmesh serve: serving?[2J",
        "trainmesh serve: worker-1: drain_cut_short requests=3 reason=told to",
    ]


def test_an_event_that_comes_too_often_is_held_back_and_counted() -> None:
    now_s = 0.0
    limit = RateLimit(clock=lambda: now_s)

    def passes(name: str = LOGGER.name, event: str = "e", level: int = logging.INFO) -> Any:
        record = logging.LogRecord(name, level, "", 0, event, None, None)
        return record.__dict__ if limit.filter(record) else None

    assert [bool(passes()) for _ in range(BURST + 3)] == [True] * BURST + [False] * 3
    assert passes(event="other")
    assert passes(level=logging.ERROR)
    for name in (ACCESS.name, CONTROL.name):
        assert all(passes(name=name) for _ in range(BURST + 3))
    now_s = 1.5
    assert passes()["fields"] == {"suppressed": 3}
    assert not passes()
    now_s = 100.0
    assert passes()["fields"] == {"suppressed": 1}


def test_a_reader_that_does_not_read_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "CLOSE_TIMEOUT_S", 0.1)
    read_end, write_end = os.pipe()
    logs = Logs("control", write_end)
    while not logs.dropped:
        ACCESS.info("x" * 1000)
    logs.close()
    monkeypatch.undo()
    deadline_s = time.monotonic() + 20
    while any(thread.name == "log" for thread in threading.enumerate()):
        assert time.monotonic() < deadline_s
        if select.select([read_end], [], [], 0.01)[0]:
            os.read(read_end, 1 << 20)
    os.close(write_end)
    os.close(read_end)


def test_a_reader_that_is_gone_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    logs = Logs("control", write_end)
    ACCESS.info("anyone?")
    logs.close()
    assert logs.dropped == 1
    os.close(write_end)
