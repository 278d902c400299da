"""``pytest --quick`` leaves out what starts something, and refuses what slips through."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import quick

ROOT = Path(__file__).parent.parent
HELPER = "from tests.launchjob import LAUNCH, place"
SOURCES = {
    "pure": ("", "    assert 1\n", ""),
    "only the starter's import": ("import subprocess", "    assert 1\n", ""),
    "its own code": ("import subprocess", "    subprocess.run(['true'])\n", "subprocess"),
    "an import in its body": ("", "    import socket\n    socket.socket()\n", "socket"),
    "a name of a starter": ("from socket import socket", "    socket()\n", "socket"),
    "a constant beside a starter": (HELPER, "    assert LAUNCH\n", ""),
    "a helper's helper": (HELPER, "    with place() as it:\n        it.start()\n", "subprocess"),
    "a mark": ("import pytest\npytestmark = [pytest.mark.torch]", "    assert 1\n", "torch"),
    "a package of a starter": (
        "import torch.distributed as dist", "    dist.init_process_group()\n", "torch.distributed"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_what_a_test_starts_is_seen_in_what_it_reaches(tmp_path: Path, name: str) -> None:
    head, body, reason = SOURCES[name]
    file = tmp_path / "test_it.py"
    file.write_text(f"{head}\n\ndef test_it():\n{body}")
    assert quick.why(file, "test_it") == reason
    assert quick.left_out(file) == ({"test_it": reason} if reason else {})


def test_fixtures_count_whoever_names_them(tmp_path: Path) -> None:
    file = tmp_path / "test_it.py"
    file.write_text(
        "import socket, pytest\n"
        "@pytest.fixture\ndef server():\n    return socket.socket()\n"
        "@pytest.fixture\ndef client(server):\n    return server\n"
        "def test_one(client): pass\n"
        "@pytest.mark.usefixtures('client')\ndef test_two(): pass\n"
        "def test_three(tmp_path): pass\n"
        "class TestFour:\n    def test_it(self, client): pass\n"
    )
    assert quick.left_out(file) == dict.fromkeys(("test_one", "test_two", "TestFour"), "socket")


def test_each_starter_is_a_module_that_is_there() -> None:
    """A name that has moved would be looked for in vain."""
    code = "; ".join(f"import {module}" for module in quick.STARTERS)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


UNDECLARED = {
    "os.system": "os.system('true')",
    "os.posix_spawn": "os.posix_spawn('/bin/true', ['true'], {})",
    "subprocess.Popen": "__import__('subprocess').run(['true'])",
    "socket.bind": "__import__('socket').create_server(('127.0.0.1', 0)).close()",
}
"""By the interpreter's event: code that the source's reader doesn't see through."""


def test_what_slips_through_fails_and_is_told_its_mark(tmp_path: Path) -> None:
    tests = [
        f"def test_{number}(): {code}\n@pytest.mark.starts\ndef test_declared_{number}(): {code}\n"
        for number, code in enumerate(UNDECLARED.values())
    ]
    (tmp_path / "test_it.py").write_text(
        "import os, pytest\n" + "".join(tests) + "def test_pure(): pass\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = starts\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.quick", "--quick", "-q", str(tmp_path)]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "4 failed, 1 passed, 4 deselected" in done.stdout
    for event in UNDECLARED:
        assert f"a quick test does {event}" in done.stdout
    assert "mark it with pytest.mark.starts" in done.stdout


def test_the_page_lists_every_file_with_tests_for_make_soak_alone() -> None:
    soaked = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "tests").rglob("test_*.py")
        if file != Path(__file__) and "mark.soak" in file.read_text()
    }
    page = (ROOT / "docs/testing.md").read_text().partition("## What only `make soak` runs")[2]
    assert set(re.findall(r"`(tests/[\w/]+\.py)`", page)) == soaked
