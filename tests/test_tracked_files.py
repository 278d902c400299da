"""The repository carries text of a size that people read; pictures and data have a place."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_BYTES = 500_000
"""Twice the largest lock file: more than that is data or a build's output."""
FOR_DATA = ("docs/", "examples/data/")
BUILT = (".whl", ".egg", ".gz", ".zip", ".so", ".o", ".a", ".pyc")
"""Made from sources or fetched: never kept beside them, wherever they lie."""


def objection(name: str, content: bytes) -> str:
    """Why a file doesn't belong into the repository; "" if it does."""
    if name.endswith(BUILT):
        return "built or fetched"
    if name.startswith(FOR_DATA):
        return ""
    if len(content) > MAX_BYTES:
        return f"{len(content)} bytes"
    return "binary" if b"\0" in content else ""


def test_no_wheel_no_binary_and_nothing_large_is_tracked() -> None:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if done.returncode != 0:
        pytest.skip("needs a git checkout")
    files = [ROOT / name for name in done.stdout.decode().split("\0") if name]
    assert len(files) > 500
    objections = {
        str(file.relative_to(ROOT)): found
        for file in files
        if file.is_file() and (found := objection(str(file.relative_to(ROOT)), file.read_bytes()))
    }
    assert objections == {}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("trainmesh/wire.py", b"import json\n", ""),
        ("torch-2.13.0-cp311.whl", b"PK", "built or fetched"),
        ("docs/old.zip", b"PK", "built or fetched"),
        ("docs/report.png", b"\x89PNG\0" * MAX_BYTES, ""),
        ("examples/data/text.txt", b"x" * (MAX_BYTES + 1), ""),
        ("tests/recorded.json", b"x" * MAX_BYTES, ""),
        ("tests/recorded.json", b"x" * (MAX_BYTES + 1), "500001 bytes"),
        ("benchmarks/load", b"\x7fELF\0", "binary"),
    ],
)
def test_what_is_refused(name: str, content: bytes, expected: str) -> None:
    assert objection(name, content) == expected
