"""Run in a lab's hosts: ``probe.py echo ADDRESS COUNT`` answers datagrams, ``probe.py ping ADDRESS
PORT COUNT`` prints the shortest round trip in seconds and the number of answers."""

import socket
import sys
import time

WAIT_S = 2.0


def echo(address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
        here.bind((address, 0))
        print(here.getsockname()[1], flush=True)
        while True:
            data, sender = here.recvfrom(2000)
            here.sendto(data, sender)


def ping(address: str, port: int, count: int) -> None:
    """Bursts of ten, so that a loss costs no time."""
    trips_s = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
        here.connect((address, port))
        here.settimeout(WAIT_S)
        here.send(b"first")  # finds out the hardware address
        here.recv(2000)
        for _ in range(count // 10):
            begin_s = time.monotonic()
            for _ in range(10):
                here.send(bytes(500))
            here.settimeout(0.05)
            try:
                for _ in range(10):
                    here.recv(2000)
                    trips_s.append(time.monotonic() - begin_s)
            except TimeoutError:
                pass
    print(min(trips_s), len(trips_s), flush=True)


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    echo(words[0]) if what == "echo" else ping(words[0], int(words[1]), int(words[2]))
