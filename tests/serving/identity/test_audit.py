"""The audit log: complete for admins, bounded for refusals, shared by processes."""

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from trainmesh.clock import ManualClock
from trainmesh.errors import ConfigError
from trainmesh.serving.identity.audit import KEPT, REFUSAL_BURST, AuditLog


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_admin_s_action_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, unix_s=lambda: 1.5)
    log.admin("key sha256:ab", "cordon", "m/a", "127.0.0.1:5", "done")
    log.admin('x"\n', "y" * 2000, "", "", "")
    first, second = lines(path)
    assert first == {
        "unix_s": 1.5,
        "kind": "admin",
        "who": "key sha256:ab",
        "action": "cordon",
        "target": "m/a",
        "where": "127.0.0.1:5",
        "result": "done",
    }
    assert (second["who"], len(second["action"])) == ('x"\n', 512)
    assert path.stat().st_mode & 0o777 == 0o600
    log.close()


def test_a_flood_of_refusals_is_counted_not_written(tmp_path: Path) -> None:
    clock = ManualClock()
    log = AuditLog(tmp_path / "a", monotonic_s=clock.monotonic_s)
    for _ in range(1000):
        log.refused("?", "request", "", "1.2.3.4:5", "invalid_api_key")
    assert len(lines(tmp_path / "a")) == REFUSAL_BURST
    clock.advance(0.1)
    log.refused("?", "request", "", "1.2.3.4:5", "invalid_api_key")
    log.refused("?", "request", "", "1.2.3.4:5", "invalid_api_key")
    found = lines(tmp_path / "a")
    assert len(found) == REFUSAL_BURST + 1
    assert found[-1]["left_out"] == 1000 - REFUSAL_BURST
    log.admin("a", "b", "", "", "")
    assert lines(tmp_path / "a")[-1]["kind"] == "admin"
    log.close()


def test_it_is_rotated_and_its_size_is_bounded(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "a", max_bytes=1000)
    for number in range(200):
        log.admin("a", "b", str(number), "", "")
    log.close()
    files = sorted(tmp_path.iterdir())
    assert len(files) == KEPT + 1
    assert all(file.stat().st_size <= 1000 for file in files)
    order = [tmp_path / "a", *(tmp_path / f"a.{number}" for number in range(1, KEPT + 1))]
    found = [int(line["target"]) for file in reversed(order) for line in lines(file)]
    assert found == list(range(found[0], 200))


def append(path: Path, who: str, times: int) -> None:
    log = AuditLog(path, max_bytes=4000)
    for number in range(times):
        log.admin(who, "x", str(number), "", "")
    log.close()


def test_processes_share_a_file_through_its_rotations(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    path = tmp_path / "a"
    writers = [context.Process(target=append, args=(path, name, 120)) for name in "bcd"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    found = [line for file in tmp_path.iterdir() for line in lines(file)]
    for name in "bcd":
        targets = sorted(int(line["target"]) for line in found if line["who"] == name)
        assert targets == list(range(120)), "a line was lost or written twice"


def test_a_file_that_was_taken_away_is_made_again(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "a")
    (tmp_path / "a").unlink()
    log.admin("a", "b", "", "", "")
    assert len(lines(tmp_path / "a")) == 1
    log.close()


def test_a_file_that_can_t_be_written_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "no" / "a", tmp_path, Path("\0")):
        with pytest.raises(ConfigError, match=r"\Aaudit: "):
            AuditLog(path)
