"""The etcd of a lab's jobs: ``python -m trainmesh.launcher.lab.store DIRECTORY ADDRESS`` prints
its URL once it answers, and ends it when standard input ends."""

from __future__ import annotations

import sys
from pathlib import Path

from trainmesh.errors import TrainmeshError
from trainmesh.store.embedded import EmbeddedEtcd

__all__ = ["main"]

START_S = 20.0
"""For etcd, on a machine that may be busy."""


def main() -> int:
    """Entry point."""
    directory, address = Path(sys.argv[1]), sys.argv[2]
    try:
        etcd = EmbeddedEtcd(directory / "etcd", directory / "etcd.log", host=address)
        etcd.start()
        try:
            etcd.wait_ready(START_S)
            print(etcd.url, flush=True)
            sys.stdin.read()
        finally:
            etcd.stop()
    except TrainmeshError as error:
        print(f"trainmesh: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
