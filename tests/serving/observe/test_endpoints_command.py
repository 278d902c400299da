"""``trainmesh endpoints`` against a running admin server, found through its run directory."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.serving.observe.desk import TOKEN, Desk
from trainmesh.launcher.cli import main
from trainmesh.serving.admin.admin import AdminServer
from trainmesh.serving.control.rundir import ServeRun
from trainmesh.serving.control.snapshot import Observations
from trainmesh.serving.identity import admin_token
from trainmesh.serving.signals.probe_state import ProbeState


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


class Running:
    """A desk with its admin server, on a thread of its own."""

    def __init__(self, desk: Desk, name: str) -> None:
        self.desk = desk
        desk.info = msgspec.structs.replace(desk.info, name=name)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._admin = AdminServer(desk)
        url = asyncio.run_coroutine_threadsafe(self._admin.start(), self._loop).result(10)
        self.run = ServeRun.create(name)
        info = self.run.info()
        assert info is not None
        self.run.publish(msgspec.structs.replace(info, admin=url))
        (self.run.path / admin_token.FILE).write_text(TOKEN)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._admin.close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.run.remove()
        self.desk.close()


@pytest.fixture
def router(tmp_path: Path) -> Iterator[Running]:
    (tmp_path / "desk").mkdir()
    running = Running(Desk(tmp_path / "desk"), "front")
    yield running
    running.close()


@pytest.mark.starts
def test_it_shows_every_endpoint(router: Running, capsys: pytest.CaptureFixture[str]) -> None:
    probe_state = ProbeState(rtts_s=(0.004,), rtt_at_s=1.0)
    router.desk.look(Observations(probe_states={"http://127.0.0.1:9001": probe_state}))
    cells = router.desk.counters.layout.endpoints["m", "h1"]
    router.desk.counters.row(0).cells[cells.attempts] = 3
    assert main(["endpoints"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("router front (pid 1) at http://127.0.0.1:8080: 0 workers, snapshot")
    row = next(line for line in lines if line.startswith("h1 "))
    assert row.split()[:3] == ["h1", "healthy", "0"]
    assert "100.0 %" in row
    assert "4.00 ms (" in row, "with the age of an old measurement"
    assert any(line.startswith("org/h2:1 ") for line in lines)
    assert any(line.startswith("shadow mesh: ") for line in lines)


@pytest.mark.starts
def test_it_prints_json(router: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["endpoints", "--json", "--router", "front"]) == 0
    (view,) = json.loads(capsys.readouterr().out)
    assert view["models"][0]["endpoints"][0]["name"] == "h1"


@pytest.mark.starts
def test_an_admins_words(router: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["endpoints", "drain", "org/h2:1"]) == 0
    assert capsys.readouterr().out == "org/h2:1: drained, idle\n"
    assert main(["endpoints"]) == 0
    assert "draining by key sha256:" in capsys.readouterr().out
    assert main(["endpoints", "uncordon", "org/h2:1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "open"
    cells = router.desk.counters.layout.endpoints["m", "h1"]
    router.desk.counters.row(0).cells[cells.inflight] = 2
    assert main(["endpoints", "cordon", "h1"]) == 0
    assert capsys.readouterr().out == "h1: cordoned, 2 requests in flight\n"


@pytest.mark.starts
def test_drain_waits_as_long_as_it_is_told(
    router: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = router.desk.counters.layout.endpoints["m", "h1"]
    row = router.desk.counters.row(0)
    row.cells[cells.inflight] = 1
    assert main(["endpoints", "drain", "h1", "--wait", "1s"]) == 1
    assert capsys.readouterr().out == "h1: draining, 1 request in flight\n"
    done: list[int] = []
    waiting = threading.Thread(
        target=lambda: done.append(main(["endpoints", "drain", "h1", "--wait"]))
    )
    waiting.start()
    waiting.join(0.3)
    assert done == []
    row.cells[cells.inflight] = 0
    waiting.join(10)
    assert done == [0]
    for argv in (["--wait"], ["cordon", "h1", "--wait", "1s"]):
        assert main(["endpoints", *argv]) == 2
        assert "--wait is for drain" in capsys.readouterr().err


@pytest.mark.starts
def test_mistakes_end_in_one_line(router: Running, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, code, said in (
        (["drain"], 2, "name the endpoint to drain; trainmesh endpoints lists them"),
        (["drain", "h9"], 1, "router front: no endpoint is called 'h9'"),
        (["--router", "back"], 1, "no router 'back' is running on this machine; running: front"),
        (["cordon", "h1", "--router", "back"], 1, "no router 'back' is running"),
    ):
        assert main(["endpoints", *argv]) == code
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    (router.run.path / admin_token.FILE).write_text("another")
    assert main(["endpoints", "cordon", "h1"]) == 1
    assert "router front: An admin's key is needed" in capsys.readouterr().err
    (router.run.path / admin_token.FILE).unlink()
    assert main(["endpoints", "cordon", "h1"]) == 2
    assert "admin.token: No such file" in capsys.readouterr().err


@pytest.mark.starts
def test_several_routers_are_shown_and_one_must_be_named(
    router: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "back").mkdir()
    other = Running(Desk(tmp_path / "back"), "back")
    try:
        assert main(["endpoints"]) == 0
        shown = capsys.readouterr().out
        assert "router front " in shown
        assert "router back " in shown
        assert main(["endpoints", "cordon", "h1"]) == 2
        assert "name one with --router: front, back" in capsys.readouterr().err
        assert main(["endpoints", "cordon", "h1", "--router", "back"]) == 0
    finally:
        other.close()
    assert router.desk.snapshot is not None
    assert not router.desk.snapshot.signals["m"][0].excluded


def test_without_a_router_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["endpoints"]) == 0
    assert capsys.readouterr().out == "no router is running on this machine as this user\n"
    assert main(["endpoints", "drain", "h1"]) == 1
    assert "no router is running" in capsys.readouterr().err


def test_a_router_that_does_not_answer(capsys: pytest.CaptureFixture[str]) -> None:
    run = ServeRun.create("front")
    info = run.info()
    assert info is not None
    run.publish(msgspec.structs.replace(info, admin="http://127.0.0.1:1"))
    assert main(["endpoints"]) == 1
    assert "router front at http://127.0.0.1:1 does not answer: " in capsys.readouterr().err
