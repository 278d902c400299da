"""Write down what a worker sees: argv, environment, paths, standard input."""

import json
import os
import sys
import time
from pathlib import Path

OWN = ("TRAINMESH", "PYTHONPATH", "OUT")
VARY = {"MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE", "TMPDIR", "_"}

attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
rank = os.environ["RANK"]
seen = {
    "argv": sys.argv,
    "file": __file__,
    "main": [__name__, sys.modules["__main__"].__dict__ is globals()],
    "path": [entry for entry in sys.path if not entry.endswith("launcher/site")],
    "stdin": sys.stdin.read() if rank == "0" else "",
    "environment": {
        name: None if name in VARY else value
        for name, value in sorted(os.environ.items())
        if not name.startswith(OWN)
    },
}
Path(os.environ["OUT"], f"{rank}-{attempt}.json").write_text(json.dumps(seen))
sys.stdout.write(f"out of rank {rank}\n")  # one write: lines of two ranks don't mix
sys.stderr.write(f"err of rank {rank}\n")
if "--fail-first" in sys.argv and attempt == "0":
    while rank == "1" or not Path(os.environ["OUT"], "1-0.done").exists():
        Path(os.environ["OUT"], f"{rank}-0.done").touch()
        time.sleep(0.01)  # rank 1 does so until it is ended
    sys.exit(9)
