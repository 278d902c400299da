"""A probe's progress: a bar in a terminal, plain lines elsewhere."""

import os
import sys

import pytest

from trainmesh.launcher.probe.progress import shown

PAIRS = [("a\x1b[2J", "b"), *((f"n{number}", "x") for number in range(5))]


def show() -> None:
    with shown(num_rounds=3, num_pairs=12) as progress:
        progress.begin_round(2, PAIRS)
        progress.pair_done()


def everything(terminal: int) -> str:
    """All that was written to the other end of ``terminal``, which is closed by now."""
    data = b""
    with os.fdopen(terminal, "rb", buffering=0) as outlet:
        try:
            while part := outlet.read(4_096):
                data += part
        except OSError:
            pass  # Linux says EIO where nothing is left
    return data.decode()


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    show()
    assert capsys.readouterr().err == (
        "trainmesh: round 2 of 3: a?[2J - b, n0 - x, n1 - x, n2 - x and 2 more\n"
    )


def test_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(there, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        show()
    text = everything(here)
    assert "1 of 12 pairs" in text
    assert "round 2 of 3: a?[2J - b" in text
    assert "\x1b[2J" not in text
