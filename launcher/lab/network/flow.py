"""One TCP stream: ``flow.py receive ADDRESS`` prints its port, then, once the sender has closed,
bytes and seconds from the first one to the last; ``flow.py send ADDRESS PORT BYTES`` sends.

Runs by path, isolated and without ``site``: standard library only.
"""

from __future__ import annotations

import socket
import sys
import time

__all__ = ["main"]

CHUNK_BYTES = 256 * 1024
"""Read and written at a time: the cost of a call no longer counts."""
WAIT_S = 30.0
"""Without a byte for this long the link is taken to be down."""


def receive(address: str) -> None:
    """Take one stream and say how fast it was."""
    with socket.create_server((address, 0)) as server:
        server.settimeout(WAIT_S)
        print(server.getsockname()[1], flush=True)
        stream, _ = server.accept()
    stream.settimeout(WAIT_S)
    chunk = bytearray(CHUNK_BYTES)
    stream.recv_into(chunk)
    begin_s = end_s = time.monotonic()
    total = 0
    while count := stream.recv_into(chunk):
        total += count
        end_s = time.monotonic()
    print(total, end_s - begin_s, flush=True)


def send(address: str, port: int, nbytes: int) -> None:
    """Send ``nbytes`` over one connection."""
    chunk = bytes(CHUNK_BYTES)
    with socket.create_connection((address, port), timeout=WAIT_S) as stream:
        while nbytes > 0:
            nbytes -= stream.send(chunk[:nbytes])


def main() -> None:
    """Entry point."""
    what, address, *numbers = sys.argv[1:]
    if what == "receive":
        receive(address)
    else:
        send(address, *map(int, numbers))


if __name__ == "__main__":
    main()
