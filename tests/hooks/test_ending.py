"""A thread of ours that comes back from C++ as the interpreter ends takes no exit code away."""

import signal
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
threading.Thread(target=wait, name=sys.argv[1], daemon=True).start()
kept = Slow()
time.sleep(0.3)  # until it waits
sys.exit(17)
"""


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("trainmesh late", 17),
        pytest.param(
            "of the script's own",
            -signal.SIGABRT,
            marks=pytest.mark.skipif(
                sys.version_info >= (3, 14), reason="such threads hang from Python 3.14 on"
            ),
        ),
    ],
)
def test_the_exit_code_is_kept(name: str, code: int) -> None:
    """What becomes of a thread of the script's own is not changed where there is none of ours."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, name], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr
