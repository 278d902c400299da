"""Installs the hook into the Python processes of a launch, before their script is there.

The launcher puts this directory first on its workers' PYTHONPATH. So their command is torchrun's
own, and the processes that they start (torch.multiprocessing, another launcher, a subprocess) are
reached as well. A sitecustomize that is shadowed by this one still runs. Any Python may load this
file: nothing in it is newer than Python 3.6.
"""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec, spec_from_file_location

_here = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != _here]


def _install() -> None:
    """Load the patch by its path: ``import trainmesh`` is left to the script."""
    if "TRAINMESH_LAUNCHER" not in os.environ:
        return
    file = os.path.join(os.path.dirname(os.path.dirname(_here)), "hooks", "patch.py")
    try:
        spec = spec_from_file_location("_trainmesh_patch", file)
        if spec is None or spec.loader is None:
            raise ImportError(file)
        module = module_from_spec(spec)
        sys.modules["_trainmesh_patch"] = module
        spec.loader.exec_module(module)
        module.install()
    except Exception as error:  # an old Python, or a file that can't be read; the script must run
        is_worker = os.environ.get("TRAINMESH_LAUNCHER") == str(os.getppid())
        if is_worker and os.environ.get("RANK") == "0" and sys.stderr is not None:
            print(f"trainmesh: not active in {sys.executable}: {error!r}", file=sys.stderr)


_install()
_spec = PathFinder.find_spec("sitecustomize")
if _spec is not None and _spec.loader is not None:
    _module = module_from_spec(_spec)
    sys.modules["sitecustomize"] = _module
    _spec.loader.exec_module(_module)
