"""Compiles the data path of ``trainmesh serve`` with mypyc where TRAINMESH_COMPILE=1 is set.

All metadata is in pyproject.toml, and the same sources run either way: compiled, a request takes
less than half the CPU in Python (docs/serving.md). mypyc is part of mypy.
"""

from __future__ import annotations

import ast
import os
from pathlib import Path

from setuptools import Extension, setup

__all__ = ["ROOMS", "UNCOMPILED", "compiled_modules"]

SERVING = Path("trainmesh/serving")
"""mypyc takes a module's name from its path."""
ROOMS = ("decide", "identity", "observe", "proxy")
"""What a request passes through: all of it is compiled but what follows, and modules with a msgspec
Struct, whose options mypyc would drop."""
UNCOMPILED = {
    "decide/simulate": "runs without requests",
    "decide/simulated_server": "runs without requests",
    "identity/admin_token": "of the admin server",
    "identity/certificates": "read at the start and when they change",
    "identity/describe_tls": "words of errors",
    "identity/rules": "a rule is evaluated by CEL's library",
    "identity/tls": "read at the start and when it changes",
    "identity/tokens": "a token is checked by PyJWT, once",
    "observe/log": "runs in a thread of its own",
    "observe/trace": "sampled requests only",
    "proxy/loops": "once a process",
    "proxy/open_files": "once a process",
    "proxy/worker": "once a process",
}


def compiled_modules(serving: Path) -> list[str]:
    """The modules of the data path below ``serving``, such as ``decide/pool``, sorted."""
    found = {
        str(path.relative_to(serving).with_suffix("")): path
        for room in ROOMS
        for path in (serving / room).rglob("*.py")
        if path.name != "__init__.py"
    }
    return sorted(
        name for name, path in found.items() if name not in UNCOMPILED and not _has_struct(path)
    )


def _has_struct(path: Path) -> bool:
    """Whether a class there is a Struct; one that inherits another's shows by its options."""
    classes = [
        node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)
    ]
    return any(
        node.keywords or any(ast.unparse(base).endswith("Struct") for base in node.bases)
        for node in classes
    )


def extensions() -> list[Extension]:
    """The compiled modules; none unless asked for."""
    if os.environ.get("TRAINMESH_COMPILE") != "1":
        return []
    from mypyc.build import mypycify

    _link_folders()
    files = [f"{SERVING / name}.py" for name in compiled_modules(SERVING)]
    options = ["--config-file=", "--ignore-missing-imports", "--follow-imports=silent"]
    return list(mypycify([*options, *files], opt_level="2", debug_level="0"))


def _link_folders() -> None:
    """An archive has no links, by which mypyc finds the packages at the root."""
    for name in ("hooks", "launcher", "serving", "topology"):
        link = SERVING.parent / name
        if not link.exists():
            link.symlink_to(Path("..") / name)


if __name__ == "__main__":
    setup(ext_modules=extensions())
