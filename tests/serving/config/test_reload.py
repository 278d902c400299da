"""A new serve.yaml is taken while the router runs; a wrong one is not."""

import os
from pathlib import Path

import pytest

from trainmesh.bounded_read import read_bounded
from trainmesh.clock import ManualClock
from trainmesh.errors import ConfigError
from trainmesh.serving.config.changes import changes
from trainmesh.serving.loading.load import load
from trainmesh.serving.loading.reload import REREAD_S, Reload, Watcher

ONE = """\
version: 1
models:
  m:
    policy: hybrid
    endpoints:
      - {url: "http://127.0.0.1:9001"}
"""


class Watched:
    """A file under watch, and a clock."""

    def __init__(self, folder: Path, text: str = ONE) -> None:
        self.path = folder / "serve.yaml"
        self.path.write_text(text)
        self.clock = ManualClock()
        self.watcher = Watcher(self.path, {}, None, monotonic_s=self.clock.monotonic_s)
        self._writes = 0

    def write(self, text: str) -> None:
        """As editors do it: another file, renamed. Its time is moved on, because two writes
        may fall into one tick of the file system's clock."""
        new = self.path.with_suffix(".new")
        new.write_text(text)
        self._writes += 1
        os.utime(new, ns=(self._writes * 10**9, self._writes * 10**9))
        new.replace(self.path)

    def settled(self) -> Reload | None:
        """What two looks a second apart have to say."""
        first = self.watcher.look()
        self.clock.advance(1)
        return first or self.watcher.look()


def test_nothing_is_said_while_nothing_changes(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    assert [watched.settled() for _ in range(40)] == [None] * 40


def test_a_new_file_is_taken_and_its_changes_are_named(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.write(ONE.replace("hybrid", "mesh") + '      - {url: "http://h:2", name: x}\n')
    reload = watched.settled()
    assert reload is not None
    assert reload.lines == ("model m: endpoint x added", "model m: policy hybrid -> mesh")
    assert reload.config is watched.watcher.config
    assert [one.name for one in watched.watcher.config.models["m"].endpoints][1] == "x"
    assert watched.settled() is None


def test_a_file_that_is_being_written_is_left_alone_until_it_is_still(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.write(ONE.replace("hybrid", "mesh"))
    assert watched.watcher.look() is None
    watched.write(ONE.replace("hybrid", "round_robin"))
    assert watched.watcher.look() is None
    reload = watched.watcher.look()
    assert reload is not None
    assert reload.lines == ("model m: policy hybrid -> round_robin",)


def test_a_wrong_file_changes_nothing_and_is_reported_once(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    before = watched.watcher.config
    watched.write(ONE.replace("policy", "polcy"))
    reload = watched.settled()
    assert reload is not None
    assert reload.config is None
    [line] = reload.lines
    assert line == (
        f"{watched.path}:4: models.m.polcy: unknown key: did you mean policy?; "
        "the configuration stays as it was"
    )
    watched.clock.advance(REREAD_S)
    assert watched.settled() is None
    assert watched.watcher.config is before
    watched.write(ONE)
    reload = watched.settled()
    assert reload is not None
    assert "right again" in reload.lines[0]


def test_a_file_that_is_gone_is_reported(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.path.unlink()
    reload = watched.settled()
    assert reload is not None
    assert "No such file" in reload.lines[0]


def test_the_same_text_again_is_no_change(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.write(f"# a comment\n{ONE}")
    assert watched.settled() is None


def test_what_needs_a_restart_stays_and_is_said_once(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.write(f"{ONE}workers: 4\ninsecure: true\n")
    reload = watched.settled()
    assert reload is not None
    assert reload.config is not None
    assert (reload.config.workers, reload.config.insecure) == (1, True)
    assert reload.lines[-1] == "workers: takes effect with the next start"
    watched.clock.advance(REREAD_S)
    assert watched.settled() is None


def test_a_new_key_in_a_key_file_is_found(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sk-0123456789\n")
    watched = Watched(tmp_path, f"{ONE}tenants: {{a: {{keys: ['file:keys']}}}}\n")
    keys.write_text("sk-0123456789\nsk-9876543210\n")
    assert watched.settled() is None
    watched.clock.advance(REREAD_S)
    reload = watched.settled()
    assert reload is not None
    assert reload.lines == ("tenant a: keys changed",)
    assert reload.config is not None
    assert len(reload.config.tenants["a"].keys) == 2


@pytest.mark.parametrize("name", ["serve.yaml", "keys"])
def test_a_pipe_in_place_of_a_file_holds_nothing_up(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_bounded, "__kwdefaults__", {"pipe_s": 0.1})
    (tmp_path / "keys").write_text("first-key-of-somebody\n")
    watched = Watched(tmp_path, ONE + "tenants:\n  a:\n    keys: [file:keys]\n")
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    found = None
    for _ in range(2 * int(REREAD_S)):
        found = found or watched.settled()
    assert found is not None
    (line,) = found.lines
    assert f"{name}: a pipe to which nobody has written to the end" in line
    assert line.endswith("; the configuration stays as it was")


def test_a_watcher_begins_with_a_valid_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Watcher(tmp_path / "no.yaml", {})


def test_changes_are_in_words(tmp_path: Path) -> None:
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(
        ONE + "tenants: {a: {keys: ['env:A']}, b: {keys: ['env:B']}}\nlimits: {queue: 5}\n"
    )
    new.write_text(
        ONE.replace("9001", "9002").replace("m:", "k:")
        + "tenants: {a: {keys: ['env:C'], priority: 1, zones: []}, c: {keys: ['env:B']}}\n"
        + "limits: {queue: 6}\n"
    )
    environ = {name: f"sk-0123456789-{name}" for name in "ABC"}
    assert changes(load(old, environ), load(new, environ)) == (
        "model m removed",
        "model k added, endpoints: 1",
        "tenant a: keys changed",
        "tenant a: priority 5 -> 1",
        "tenant b removed",
        "tenant c added",
        "limits.queue 5 -> 6",
    )
    assert changes(load(old, environ), load(old, environ)) == ()
