"""Benchmarks and scripts run seldom, so what they take from elsewhere is looked at here."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(
    path.relative_to(ROOT)
    for folder in ("benchmarks", "scripts")
    for path in (ROOT / folder).rglob("*.py")
)
OWN = ("trainmesh", "benchmarks", "tests")
PROGRAMS = [path for path in FILES if "ArgumentParser(" in (ROOT / path).read_text()]


@pytest.mark.torch
@pytest.mark.parametrize("path", FILES, ids=str)
def test_what_it_imports_of_ours_is_there(path: Path) -> None:
    missing = []
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] not in OWN:
            continue
        module = importlib.import_module(node.module or "")
        for name in node.names:
            try:
                found = hasattr(module, name.name) or bool(
                    importlib.import_module(f"{node.module}.{name.name}")
                )
            except ModuleNotFoundError:
                found = False
            if not found:
                missing.append(f"{node.module}.{name.name}")
    assert missing == []


@pytest.mark.torch
@pytest.mark.parametrize("path", PROGRAMS, ids=str)
def test_it_starts(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / path), "--help"],
        capture_output=True, text=True, cwd=ROOT, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
