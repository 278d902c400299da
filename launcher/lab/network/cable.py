"""The process that carries frames over the cables that have latency or loss (``relay``)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainmesh.errors import ConfigError, TrainmeshError
from trainmesh.launcher.lab.network.namespaces import CONTROL, Namespaces, isolated_script
from trainmesh.launcher.lab.network.ready import has_input
from trainmesh.launcher.lab.network.shape import Condition

__all__ = ["Cables", "CableEnd"]

ANSWER_S = 10.0
"""For the process at the other end, on a machine that may be busy."""


@dataclass(frozen=True)
class CableEnd:
    """One end of a cable: a TAP device to be made in a host (its index) or in ``CONTROL``."""

    host: int
    device: str


class Cables:
    """Cables between pairs of devices, which exist when this returns.

    Raises:
        ConfigError: the devices can't be made.
    """

    def __init__(self, namespaces: Namespaces, cables: Sequence[tuple[CableEnd, CableEnd]]) -> None:
        files = {
            end.host: namespaces.network_file(end.host)
            for cable in cables
            for end in cable
            if end.host != CONTROL
        }
        described = [[(files.get(end.host, -1), end.device) for end in cable] for cable in cables]
        self._process = namespaces.start(
            CONTROL,
            [*isolated_script("relay"), json.dumps(described)],
            environment=os.environ,
            directory=Path("/"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            more_files=list(files.values()),
        )
        if self._answer() != b"ready\n":
            words = self._end().decode(errors="replace").strip().splitlines() or ["no answer"]
            raise ConfigError(
                f"no TAP device can be made: {words[-1]}; latency and loss need /dev/net/tun "
                "(modprobe tun; docker run --device /dev/net/tun)"
            )

    def change(self, cable: int, is_forward: bool, condition: Condition) -> None:
        """Set latency and loss of one direction.

        Raises:
            TrainmeshError: the process that carries the frames has died.
        """
        order = {
            "cable": cable,
            "end": 0 if is_forward else 1,
            "latency_s": condition.latency_s,
            "loss": condition.loss,
        }
        try:
            stdin = self._process.stdin
            if stdin is not None:
                stdin.write(json.dumps(order).encode() + b"\n")
                stdin.flush()
        except BrokenPipeError:
            pass  # no answer will come
        if self._answer() != b"ok\n":
            raise TrainmeshError("the lab's links with latency don't work any more")

    def close(self) -> None:
        """End the process."""
        self._end()

    def _answer(self) -> bytes:
        stdout = self._process.stdout
        if stdout is None or not has_input(stdout, ANSWER_S):
            return b""
        return os.read(stdout.fileno(), 64)

    def _end(self) -> bytes:
        """End the process; returns what it said on stderr."""
        self._process.kill()
        return self._process.communicate()[1]
