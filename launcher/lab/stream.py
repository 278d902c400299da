"""The rate of one plain TCP stream between two hosts of a lab: the part of a link's rate that
TCP/IP leaves."""

from __future__ import annotations

import subprocess

from trainmesh.errors import TrainmeshError
from trainmesh.launcher.lab.lab import Lab
from trainmesh.launcher.lab.network.namespaces import isolated_script
from trainmesh.launcher.lab.network.ready import has_input

__all__ = ["DEFAULT_BYTES", "stream_gbps"]

DEFAULT_BYTES = 25_000_000
"""A tenth of a second at 2 Gbit/s: longer than TCP takes to open its window."""
START_S = 20.0
"""For a Python process, on a machine that may be busy."""


def stream_gbps(
    lab: Lab, src: str, dst: str, nbytes: int = DEFAULT_BYTES, *, timeout_s: float = 120.0
) -> float:
    """The payload rate of one TCP stream from host ``src`` to host ``dst``, in 10^9 bit/s, from
    the arrival of the first byte to that of the last.

    Raises:
        GraphError: no such host.
        TrainmeshError: the stream did not get through in ``timeout_s``.
    """
    address = lab.address(dst)
    script = isolated_script("flow")
    receiver = lab.start(dst, [*script, "receive", address], stdout=subprocess.PIPE)
    sender = None
    try:
        stdout = receiver.stdout
        port = b""
        if stdout is not None and has_input(stdout, START_S):
            port = stdout.readline().strip()
        sender = lab.start(src, [*script, "send", address, port.decode() or "0", str(nbytes)])
        words = receiver.communicate(timeout=timeout_s)[0].split()
    except subprocess.TimeoutExpired as error:
        raise TrainmeshError(
            f"{nbytes} bytes did not get from {src} to {dst} in {timeout_s:g} s"
        ) from error
    finally:
        for process in filter(None, (sender, receiver)):
            process.kill()
            process.wait()
        if receiver.stdout is not None:
            receiver.stdout.close()
    if len(words) != 2 or float(words[1]) <= 0:
        raise TrainmeshError(f"no stream of {nbytes} bytes got from {src} to {dst}")
    return int(words[0]) * 8e-9 / float(words[1])
