"""The program ``trainmesh``: its way into the package, by a name that no module of the user's has.

Python looks into PYTHONPATH before it looks where packages are installed, so that a
``trainmesh.py`` there would be taken for us. The package is beside this file, installed or not.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Entry point; as ``trainmesh.launcher.entry.main``."""
    init = Path(__file__).resolve().parent / "trainmesh" / "__init__.py"
    spec = spec_from_file_location("trainmesh", init)
    if spec is None or spec.loader is None:
        raise ImportError(f"no trainmesh at {init}")
    package = module_from_spec(spec)
    sys.modules["trainmesh"] = package
    spec.loader.exec_module(package)

    from trainmesh.launcher import entry

    entry.main()
