"""A signal that comes while a folder is made finds somebody who removes it."""

import os
import signal
from pathlib import Path

import pytest

from trainmesh.launcher.run import signals
from trainmesh.launcher.run.leftovers import log_directory


def test_it_raises_at_the_end() -> None:
    steps: list[str] = []

    def interrupted() -> None:
        with signals.deferring():
            os.kill(os.getpid(), signal.SIGINT)
            steps.append("made and given away")
        steps.append("goes on")

    with signals.raising(), pytest.raises(KeyboardInterrupt):
        interrupted()
    assert steps == ["made and given away"]


def test_a_log_directory_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made: list[str] = []

    def interrupt(path: str) -> None:
        made.append(path)
        os.kill(os.getpid(), signal.SIGINT)

    with (
        signals.raising(),
        pytest.raises(KeyboardInterrupt),
        log_directory(None, interrupt),
    ):
        pass
    assert made
    assert list(tmp_path.iterdir()) == []
