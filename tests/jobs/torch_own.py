"""Run torch's own DDP tests on two CPU ranks: torch_own.py [NAME ...]. HOOKED=1: with the hook.

Prints one JSON object: each test's name and "passed", "skipped: why" or its error's last line.
Run by tests/hooks/test_torch_own.py.
"""

import io
import json
import os
import sys
import tempfile
import unittest

if os.environ.get("HOOKED"):
    from trainmesh.hooks import patch

    patch.install()

os.environ.update(BACKEND="gloo", WORLD_SIZE="2")
os.environ.setdefault("TEMP_DIR", tempfile.mkdtemp(prefix="torch-own-"))

from torch.testing._internal.distributed.distributed_test import (
    DistributedTest,
    TestDistBackend,
)

WORDS = ("ddp", "distributeddataparallel", "join")


class TorchOwn(TestDistBackend, DistributedTest._DistTestBase):
    def setUp(self) -> None:
        super().setUp()  # type: ignore[no-untyped-call]
        self._spawn_processes()


def names() -> list[str]:
    every = unittest.defaultTestLoader.getTestCaseNames(TorchOwn)
    return [name for name in every if any(word in name.lower() for word in WORDS)]


def outcome(name: str) -> str:
    result = unittest.TextTestRunner(stream=io.StringIO()).run(TorchOwn(name))
    if result.skipped:
        return f"skipped: {result.skipped[0][1]}"
    if failed := [*result.errors, *result.failures]:
        return failed[0][1].strip().splitlines()[-1]
    return "passed"


def main() -> None:
    for name in sys.argv[1:] or names():
        print(json.dumps({name: outcome(name)}), flush=True)


if __name__ == "__main__":
    main()
