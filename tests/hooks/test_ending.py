"""A thread of ours that comes back from C++ as the interpreter ends takes no exit code away."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.torch

SCRIPT = """
import sys, threading, time
from datetime import timedelta
import torch.distributed as dist
from trainmesh.hooks import modules

class Slow:
    sleep = staticmethod(time.sleep)
    def __del__(self):  # the interpreter is being taken apart
        self.sleep(2)

modules.mark_seen()
store = dist.HashStore()
wait = lambda: store.wait(["never"], timedelta(seconds=1))
threading.Thread(target=wait, name="trainmesh late", daemon=True).start()
kept = Slow()
time.sleep(0.3)  # until it waits
sys.exit(17)
"""


def test_the_exit_code_is_kept() -> None:
    """Without the mend it is lost in most runs, so there are four, side by side."""
    runs = [
        subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    ended = [(process.communicate(timeout=60)[1], process.returncode) for process in runs]
    assert [code for _, code in ended] == [17] * 4, ended
