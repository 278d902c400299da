"""Install the hook into a process before its script runs, without importing torch.

A script that never imports torch pays nothing, and one that imports torch next to nothing: DDP is
wrapped when a module is first made or loaded, FSDP2 when ``torch.distributed.fsdp`` is imported.

This file is loaded by its path, before the script and under a name of its own, so it imports
nothing of trainmesh: the name belongs to the script until ``_own_imports``.
"""

from __future__ import annotations

import atexit
import functools
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

__all__ = ["UNSEEN", "import_trainmesh", "install", "library_path", "own_path"]

ENV_RUN_DIR, ENV_WORKER = "TRAINMESH_RUN_DIR", "TRAINMESH_WORKER"
UNSEEN = "unseen"
"""The file in a run directory which says that rank 0's process has ended well without a module that
communicates."""
OWN = ("trainmesh", "msgspec")
"""The libraries that we import in a script's process, beside the standard library and its torch."""
INSTALLED = (".dist-info", ".egg-info", ".egg-link", ".pth")
DDP, FSDP = "torch.nn.parallel.distributed", "torch.distributed.fsdp"
Call = Callable[[], None]

_first_path: list[str] = []
"""``sys.path`` as Python made it, before the script's folder came to it."""


def install() -> None:
    """Arrange that DDP and FSDP2 are wrapped when they are used; never raises."""
    _first_path[:] = sys.path
    if "RANK" in os.environ:
        # The first Python of a worker notes whose it is; those that it starts inherit the note.
        names = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID")
        note = ",".join(os.environ.get(name, "1") for name in names)
        os.environ.setdefault(ENV_WORKER, note)
    for target, imported in {DDP: _ddp_imported, FSDP: _fsdp_imported}.items():
        if target in sys.modules:
            imported()
        elif not any(isinstance(f, _Finder) and f.target == target for f in sys.meta_path):
            sys.meta_path.insert(0, _Finder(target, imported))


def own_path(
    path: Sequence[str], first: Sequence[str], environ: Mapping[str, str] = os.environ
) -> list[str]:
    """``path`` in an order in which no module of the user's hides one of ours or of a library's:
    folders of libraries first.

    Args:
        path: What ``sys.path`` is.
        first: What Python made of it at its start; the rest was put there by the user's code.
    """
    ours = library_path(first, environ)
    return [*ours, *(entry for entry in path if entry not in ours)]


def library_path(first: Sequence[str], environ: Mapping[str, str] = os.environ) -> list[str]:
    """``first`` without those folders of PYTHONPATH that hold a user's modules."""
    listed = [entry for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    users = {entry for entry in map(os.path.abspath, listed) if not _holds_libraries(entry)}
    return [entry for entry in first if entry and os.path.abspath(entry) not in users]


def _holds_libraries(folder: str) -> bool:
    """Whether packages were installed there, or it is where torch or trainmesh is developed."""
    try:
        names = os.listdir(folder)
    except OSError:
        return False
    packages = (os.path.join(folder, name, "__init__.py") for name in (*OWN, "torch"))
    return any(name.endswith(INSTALLED) for name in names) or any(map(os.path.isfile, packages))


def _ddp_imported() -> None:
    """At the first module that is made, or loaded from a file, DDP is wrapped."""
    atexit.register(_note_unseen)
    ddp = sys.modules[DDP].DistributedDataParallel
    originals = {name: getattr(ddp, name) for name in ("__init__", "__setstate__")}

    def first_use(name: str) -> Callable[..., Any]:
        @functools.wraps(originals[name])
        def method(module: Any, *args: Any, **kwargs: Any) -> Any:
            if getattr(ddp, name) is method:
                for each, original in originals.items():
                    setattr(ddp, each, original)
                _try(DDP, _wrap_ddp)
            return getattr(ddp, name)(module, *args, **kwargs)

        return method

    for name in originals:
        setattr(ddp, name, first_use(name))


def _fsdp_imported() -> None:
    _try(FSDP, _wrap_fsdp)


def _wrap_ddp() -> None:
    from trainmesh.hooks.ddp.registration import wrap_ddp
    from trainmesh.hooks.executors import rounds  # noqa: F401 - while it is possible

    wrap_ddp()


def _wrap_fsdp() -> None:
    from trainmesh.hooks.fsdp.install import wrap_fsdp

    wrap_fsdp()


def _try(target: str, wrap: Call) -> None:
    try:
        with _own_imports():
            wrap()
    except Exception as error:  # another torch version may differ in any way; the script must run
        if sys.stderr is not None:
            print(f"trainmesh: not active for {target} in this process: {error!r}", file=sys.stderr)


@contextmanager
def _own_imports() -> Iterator[None]:
    """Imports find what is ours and our library, also where the script has a module of the same
    name. Afterwards the script finds its own one, and any of its modules that is called like one
    of the standard library's that was imported here."""
    path, before = sys.path[:], set(sys.modules)
    sys.path[:] = own_path(path, _first_path)
    hidden = _hide_users()
    try:
        if "trainmesh" not in sys.modules:
            import_trainmesh()
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - before:
            if "." not in name and _is_shadowed(name):
                del sys.modules[name]
        sys.modules.update(hidden)


def _hide_users() -> dict[str, ModuleType]:
    """Take the script's modules that are called like ours, or like one of the standard library's,
    out of ``sys.modules``."""
    hidden: dict[str, ModuleType] = {}
    library = os.path.dirname(os.path.realpath(os.__file__)) + os.sep
    for own in (*OWN, *(sys.stdlib_module_names & set(sys.modules))):
        module = sys.modules.get(own)
        # That of the main module is none, or the script's.
        origin = _origin(getattr(module, "__spec__", None)) if own != "__main__" else None
        if module is None:
            continue
        if own not in OWN and (origin is None or origin.startswith(library)):
            continue
        expected = _init_file() if own == "trainmesh" else _origin(_find(own))
        if origin != expected:
            names = [name for name in sys.modules if name == own or name.startswith(f"{own}.")]
            hidden.update((name, sys.modules.pop(name)) for name in names)
    return hidden


def import_trainmesh() -> None:
    """Import the package that this file is a part of, wherever ``sys.path`` leads.

    Raises:
        ImportError: it is not there.
    """
    spec = importlib.util.spec_from_file_location("trainmesh", _init_file())
    if spec is None or spec.loader is None:
        raise ImportError(f"no trainmesh at {_init_file()}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["trainmesh"] = module
    spec.loader.exec_module(module)


def _init_file() -> str:
    """``trainmesh/__init__.py``: this folder is the package's subfolder, or beside the package
    where that is a clone's."""
    above = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    beside = os.path.join(above, "trainmesh", "__init__.py")
    return beside if os.path.isfile(beside) else os.path.join(above, "__init__.py")


def _find(name: str) -> ModuleSpec | None:
    return importlib.machinery.PathFinder.find_spec(name, sys.path)


def _origin(spec: ModuleSpec | None) -> str | None:
    if spec is None or not spec.has_location or spec.origin is None:
        return None  # built in, frozen, or a folder without __init__.py
    return os.path.realpath(spec.origin)


def _is_shadowed(name: str) -> bool:
    """Whether the script, importing ``name``, would find another module than the one we have."""
    spec = _find(name)
    theirs, ours = _origin(spec), _origin(sys.modules[name].__spec__)
    if spec is not None and spec.loader is None and name in OWN:
        return True  # a folder without __init__.py
    return theirs is not None and theirs != ours


def _note_unseen() -> None:
    """The process ends: leave a note for the launcher if no module that communicates was found in
    it. A process that failed has other things to report."""
    run_dir = os.environ.get(ENV_RUN_DIR)
    if not run_dir or os.environ.get("RANK", "0") != "0" or hasattr(sys, "last_type"):
        return
    modules = sys.modules.get("trainmesh.hooks.modules")
    if modules is None or not modules.any_seen():
        try:
            with open(os.path.join(run_dir, UNSEEN), "w"):
                pass
        except OSError:
            pass  # the launcher has gone


class _Finder:
    """Finds ``target`` as the import system would; ``imported`` is called when it was executed.

    An entry of ``sys.meta_path``; ``importlib.abc`` has a base class, and imports a lot."""

    def __init__(self, target: str, imported: Call) -> None:
        self.target = target
        self._imported = imported

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.target:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._imported)  # type: ignore[assignment]
        return spec


class _Loader:
    def __init__(self, loader: Any, after: Call) -> None:
        self._loader = loader
        self._after = after

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._after()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
