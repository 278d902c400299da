"""Make our own processes import our modules and our libraries, whatever lies in the user's folders.

A ``json.py`` beside a training script, or on PYTHONPATH, must affect only the script.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import trainmesh
from trainmesh.hooks.patch import library_path, own_path

__all__ = ["as_started", "come_first", "environment_of_ours"]

_as_started: list[str] = []
_first: list[str] = []
"""That, without the folder that stands for the program."""


def come_first() -> None:
    """Put this process's folders of libraries before the working directory and PYTHONPATH; for
    a process that ``python -m`` or a console script has started."""
    _as_started[:] = sys.path
    _first[:] = sys.path if sys.flags.safe_path else sys.path[1:]
    sys.path[:] = own_path(sys.path, _first)


@contextmanager
def as_started() -> Iterator[None]:
    """``sys.path`` as it was: torchrun hands it to workers that are no commands (--run-path)."""
    ours = sys.path[:]
    if _as_started:
        sys.path[:] = _as_started
    try:
        yield
    finally:
        sys.path[:] = ours


def environment_of_ours(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` for a Python process of ours (``python -P -m``): it finds this trainmesh,
    installed or not, and the libraries that this process finds, but no module of the user's."""
    root = str(Path(trainmesh.__file__).parent.parent)
    listed = environment.get("PYTHONPATH", "").split(os.pathsep)
    folders = [root, *library_path(_first or sys.path), *library_path(listed, environment)]
    if root in folders[1:]:
        del folders[0]
    usable = [os.path.abspath(entry) for entry in folders if os.pathsep not in entry]
    return {**environment, "PYTHONPATH": os.pathsep.join(dict.fromkeys(usable))}
