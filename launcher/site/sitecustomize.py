"""Installs the hook into Python processes that torchrun starts with --no-python.

The launcher puts this directory first on PYTHONPATH. A sitecustomize that is shadowed by this
one still runs. Processes of ``multiprocessing`` (DataLoader workers, resource tracker) inherit
the path; nothing is done in them.
"""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

_here = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != _here]

if "RANK" in os.environ and not any(
    word.startswith("from multiprocessing.") for word in sys.orig_argv
):
    try:
        from trainmesh.hooks import patch

        patch.install()
    except ImportError:
        if os.environ["RANK"] == "0":
            print(
                f"trainmesh: not active in {sys.executable}: trainmesh is not installed there",
                file=sys.stderr,
            )

_spec = PathFinder.find_spec("sitecustomize")
if _spec is not None and _spec.loader is not None:
    _module = module_from_spec(_spec)
    sys.modules["sitecustomize"] = _module
    _spec.loader.exec_module(_module)
