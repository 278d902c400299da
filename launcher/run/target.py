"""Is there something to run? Asked before anything is started."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.machinery import ModuleSpec, PathFinder

from trainmesh.console import clean
from trainmesh.errors import TrainmeshError

__all__ = ["NothingToRun", "check_module", "check_program", "check_script"]


class NothingToRun(TrainmeshError):
    """There is no such script, module or program; exit code 1, as torchrun's for the workers that
    can't start."""


def check_script(script: str) -> None:
    """Raise NothingToRun unless ``script`` can be run by ``python script``."""
    if not os.path.exists(script):
        raise NothingToRun(f"no such file: {clean(script)}; give the training script's path")
    if not os.access(script, os.R_OK):
        raise NothingToRun(f"can't read {clean(script)}; check its permissions")
    if os.path.isdir(script) and not os.path.exists(os.path.join(script, "__main__.py")):
        raise NothingToRun(
            f"{clean(script)} is a directory without a __main__.py; give a script in it"
        )


def check_program(program: str) -> None:
    """Raise NothingToRun unless ``program`` can be run without Python (--no-python)."""
    if shutil.which(program) is None:
        raise NothingToRun(
            f"no program {clean(program)} that can be run (--no-python runs it directly)"
        )


def check_module(name: str) -> None:
    """Raise NothingToRun unless ``python -m name`` would find its module; imports nothing of it."""
    path: list[str] | None = None
    parts = name.split(".")
    if "/" in name or not all(parts):
        raise NothingToRun(f"{name!r} is not the name of a module; -m takes package.module")
    for count in range(1, len(parts) + 1):
        part = ".".join(parts[:count])
        spec = _find(part, path)
        if spec is None:
            raise NothingToRun(f"no module named {part!r} here or in this Python's packages (-m)")
        if spec.submodule_search_locations is None and count < len(parts):
            raise NothingToRun(f"no module named {name!r}: {part!r} is not a package (-m)")
        path = list(spec.submodule_search_locations or [])
    if path and _find(f"{name}.__main__", path) is None:
        raise NothingToRun(f"package {name!r} can't be run by -m: it has no module __main__")


def _find(name: str, path: list[str] | None) -> ModuleSpec | None:
    """Like ``importlib.util.find_spec``, which would import the parent packages."""
    # The last part of the name alone: for a nested namespace package PathFinder would look up
    # the parent among the imported modules.
    folders = [os.getcwd(), *sys.path] if path is None else path
    found = PathFinder.find_spec(name.rpartition(".")[2], folders)
    if found is not None:
        return found
    others = (finder.find_spec(name, path) for finder in sys.meta_path if finder is not PathFinder)
    return next(filter(None, others), None)
