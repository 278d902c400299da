"""A worker that ends as its first argument says, without torch."""

import os
import signal
import sys
import time


def fail() -> None:
    raise ValueError("a reason")


def print_on() -> None:
    while True:
        print("line", flush=True)


ENDS = {
    "well": lambda: None,
    "raise": fail,
    "3": lambda: sys.exit(3),
    "words": lambda: sys.exit("some words"),
    "_exit": lambda: os._exit(7),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "wait": lambda: time.sleep(60),
    "print": print_on,
}
print("started", flush=True)
ENDS[sys.argv[1]]()
