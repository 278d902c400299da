"""A signal while a router starts: no traceback, the code in docs/exit_codes.md, nothing left."""

import json
import signal
import sys

import pytest

from tests.launchjob import place

WHILE_IMPORTING = """
class Watch:
    def find_spec(self, name, *rest):
        if name == "uvloop":
            os.kill(os.getpid(), signal.{signal})

sys.meta_path.insert(0, Watch())
"""
"""The first module that only ``serve`` imports."""

WHILE_STARTING = """
from trainmesh.serving.control.workers import Workers

async def start(self):
    os.kill(os.getpid(), signal.{signal})
    await asyncio.sleep(3600)

Workers.start = start
"""

SERVE = """
from trainmesh.launcher.entry import main

sys.argv = ["trainmesh", "serve", "--config", "serve.yaml"]
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", [WHILE_IMPORTING, WHILE_STARTING])
def test_a_signal_ends_the_start(moment: str, number: signal.Signals) -> None:
    with place() as here:
        models = {"m": {"endpoints": [{"url": "http://127.0.0.1:9"}]}}
        config = {"version": 1, "listen": "127.0.0.1:0", "models": models}
        (here.path / "serve.yaml").write_text(json.dumps(config))
        code = "import asyncio, os, signal, sys\n" + moment.format(signal=number.name) + SERVE
        done = here.run(
            sys.executable, "-c", code, timeout_s=30, XDG_STATE_HOME=str(here.path / "state")
        )
        if moment is WHILE_IMPORTING:
            assert (done.returncode, done.stderr) == (-number, "")
        else:
            [line] = done.stderr.splitlines()
            assert "stopped while it started" in line
            assert done.returncode == 0
        assert here.files() == []
        assert here.processes() == {}
