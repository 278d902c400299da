"""The system's programs that make a lab, found where an ordinary user's shell does not look.

Debian puts ``tc`` into ``/usr/sbin``, which is on root's PATH only; in a user namespace anyone may
use it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping

__all__ = ["find_tool", "with_system_path"]

SYSTEM_FOLDERS = ("/usr/sbin", "/sbin")


def with_system_path(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` with the folders of system programs at the end of its PATH."""
    path = environ.get("PATH", os.defpath)
    return {**environ, "PATH": os.pathsep.join([path, *SYSTEM_FOLDERS])}


def find_tool(program: str) -> str | None:
    """Where ``program`` is; None if it is not installed."""
    return shutil.which(program, path=with_system_path(os.environ)["PATH"])
